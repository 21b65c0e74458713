"""The benchmark: the relay beside the usual way of doing it, and beside a plain copy of the bytes; `make bench`."""
