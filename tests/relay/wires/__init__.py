"""Tests of `relay.wires`."""
