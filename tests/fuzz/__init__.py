"""What reads bytes of others, fed with anything: `make fuzz`."""
