"""The ``ray`` command, with as much patience for the nodes that it starts as the package has for its own.

python -m tests.operations.ray_command start --head
"""

from __future__ import annotations

from ray.scripts.scripts import main

from consistory_ray.engine.cluster.local_ray import patience_with_nodes

if __name__ == "__main__":
    with patience_with_nodes():
        main()
