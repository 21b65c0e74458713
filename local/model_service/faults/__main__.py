"""Prints the table of faults: name, default arguments, description."""

from local.model_service.faults import FAULTS, PREFIX

for fault in FAULTS.values():
    defaults = " ".join(format(value, "g") for value in fault.defaults)
    print(f"{PREFIX + fault.name:24} {defaults:10} {fault.description}")
