"""The relay: a prompt in, the model's words out the moment they are generated."""
