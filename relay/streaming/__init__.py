"""The life of one stream: commit, pings, deadline, cancellation, terminal event. It knows no wire's bytes."""
