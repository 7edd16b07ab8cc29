"""How the bundled model and its judge were made: a drawn world, and the training of both on it.

Run from the repository's root: ``python -m training.train all --run FOLDER``. Users need none of this: the wheel holds
the weights, the judge and the world's words, in ``consistory_ray.miniature``.
"""
