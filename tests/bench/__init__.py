"""The benchmark: the relay beside the usual way to stream, and beside a plain copy of the bytes; `make bench`."""
