"""Mutation testing of the request path: small faults are planted one by one, and the tests must find each."""
