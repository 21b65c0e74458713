"""Every fault that the service commits on demand, in one table, and the grammar of the faults' names.

A deployment called `fault-NAME[-ARGUMENT…]` commits the fault NAME; several are joined by `+`: `fault-crlf+split-7`.
An argument is a number or `ever`. `python -m local.model_service.faults` prints the table.

A fault does not depend on the wire: it replaces the response by an error, or changes the steps, the text or the bytes
of the response (`Fault`).
"""

from local.model_service.faults.fault import Fault, Injection, Splitter
from local.model_service.faults.table import FAULTS, PREFIX, parse

__all__ = ["FAULTS", "PREFIX", "Fault", "Injection", "Splitter", "parse"]
