"""What runs in a worker's process: the actor, its device, the real renderer, and caches as files of the output."""
