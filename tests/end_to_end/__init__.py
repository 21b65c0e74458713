"""Through the host, the official worker and real sockets."""
