"""The Ray cluster: starting or joining one, where workers find a place on it, and whether it is still there."""
