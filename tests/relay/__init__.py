"""Tests of `relay`; the modules mirror its own."""
