"""What runs each suite and client, all of it against the app at `RELAY_URL`."""
