"""What a machine without Azure needs: a simulated model service and a Functions host. The deployed app uses neither."""
