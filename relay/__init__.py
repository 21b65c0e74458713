"""The relay: streams a model's answer to a caller as it is generated.

Imports run one way: wires, callers, streaming, upstream, and below them the modules of this package itself.
"""
