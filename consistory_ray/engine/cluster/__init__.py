"""The Ray cluster: starting one or joining one, what it has, and whether it is still there."""
