"""The caller's side: the HTTP request to a function and every response that is not a stream."""
