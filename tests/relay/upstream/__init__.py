"""Tests of `relay.upstream`."""
