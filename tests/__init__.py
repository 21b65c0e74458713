"""One file a room; `end_to_end` goes through the host."""
