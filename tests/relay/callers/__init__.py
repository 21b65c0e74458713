"""Tests of `relay.callers`."""
