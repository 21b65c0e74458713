"""Tests of `relay.streaming`."""
