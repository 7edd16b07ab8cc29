"""Who does what next, and what becomes of what failed: the engine's decisions, without Ray, clocks, files or threads.

Whoever drives them tells what happened and asks what to do; where the time matters, it is an argument. So a run of a
thousand workers is a loop in a test, and a simulation in ``benchmarks/engine_model`` decides exactly as a cluster does.

* ``scheduler``: the front, the only module that the coordinator's side talks to, with what it promises;
* ``choosing``: what a worker gets next; ``settling``: what becomes of what came back, failed, or died;
* ``board``: the state that these two share, with the moves that keep it true;
* ``state``: its pieces, the work that comes in and the calls that go out;
* ``failure_record``: what went wrong with what so far; ``cache_account``: which anchor caches are alive, and where;
* ``watchdog``: which workers have been silent for too long.

The life of a scene here: it waits in its subject's ``pending``; the subject is taken up by a worker that makes its
anchors, or loads their cache (``WAITING``, ``MAKING``, ``READY``); a worker that is at home there takes the scene in a
batch; the call comes back and the scene is closed, or it fails and the scene is put back, to be tried in its batch
again, by itself, or alone on a worker, or is given up.
"""
