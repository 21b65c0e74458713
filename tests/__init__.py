"""Tests.

`relay/` mirrors the app's modules, `schedules/` explores the life of a stream, `end_to_end/` goes through the host.
"""
