"""What runs on a device: the actor that holds a model, its pool, and what it sends and saves."""
