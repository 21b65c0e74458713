"""Prints the table of faults: name, default arguments, wires, description."""

from local.model_service.faults import EVERY_WIRE, FAULTS, PREFIX

for fault in FAULTS.values():
    defaults = " ".join(format(value, "g") for value in fault.defaults)
    wires = "every wire" if fault.wires == EVERY_WIRE else " ".join(sorted(fault.wires))
    print(f"{PREFIX + fault.name:40} {defaults:10} {wires:16} {fault.description}")
