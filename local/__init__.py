"""What a machine without Azure needs: a model service, a Functions host. The deployed app imports nothing of it."""
