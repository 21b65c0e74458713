"""The model service's side: the pool of backends, the connection and credential, failures and their classification."""
