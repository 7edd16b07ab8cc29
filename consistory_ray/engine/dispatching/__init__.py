"""What the coordinator's process does while a run is on a Ray cluster: it hands out calls and takes in what comes back.

* ``session``: the stay on the cluster, which puts the others together;
* ``dispatch``: the loop between the scheduler, which decides, and the workers, which do;
* ``workforce``: which workers are there; ``pool``: their processes; ``housekeeping``: what is looked after about once a
  second;
* ``cache_keeping``: which anchor caches are alive; ``cache_saving``: those on their way to the output.
"""
