"""The wires: one module for each HTTP API that callers use. A wire knows what a caller may ask, the upstream request
made of it, and how the answer is read and written."""
