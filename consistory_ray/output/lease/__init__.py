"""Who may write to an output: one run at a time, known by its lease.

* ``processes``: which process on which machine, and whether it still runs.
* ``record``: the lease's files, and which of them counts.
* ``holders``: whether a holder is dead, so that its lease may be taken.
* ``lease``: taking it, renewing it, giving it back.
* ``fencing``: who has lost the lease writes and deletes nothing any more.
"""
