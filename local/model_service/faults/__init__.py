"""Every fault that the service commits on demand, in one table, and the grammar of the faults' names.

A deployment called `fault-NAME[-ARGUMENT…]` commits the fault NAME; several are joined by `+`: `fault-crlf+split-7`.
An argument is a number or `ever`. `python -m local.model_service.faults` prints the table.

A fault says what happens, and each wire (`Reply`) how that looks: it replaces the response by an error, or changes the
reply, its steps, its text or its bytes (`Fault`). A few can happen on some wires only.
"""

from local.model_service.faults.fault import EVERY_WIRE, Fault, Injection, Splitter
from local.model_service.faults.table import FAULTS, PREFIX, RESPONSE_ERROR_CODES, parse

__all__ = ["EVERY_WIRE", "FAULTS", "PREFIX", "RESPONSE_ERROR_CODES", "Fault", "Injection", "Splitter", "parse"]
