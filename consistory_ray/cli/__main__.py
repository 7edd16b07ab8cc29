"""``python -m consistory_ray.cli``."""

from consistory_ray.cli import main

main()
