"""The engine: one coordinator, many workers, every asset exactly once. The only place that imports Ray.

Start with :func:`consistory_ray.engine.running.run_job`, or with :func:`consistory_ray.engine.coordinator.run_plan`,
which it calls. From the ground up, and nothing here imports what stands above it:

* what is said: ``faults`` (what goes wrong, and what is done about it), ``machine``, ``stopping``, ``rendering`` (what
  drives a device), ``events``, ``options``, ``outages`` (storage that is out of reach, for moments or for long);
* ``scheduling/``: the decisions, pure; ``cluster/``: Ray itself; ``workers/``: what runs beside each device;
* the books: ``ledger``, ``workload`` (the plan less what is there), ``anchor_files``, ``history`` (earlier tries, the
  run record);
* ``dispatching/``: what the coordinator does on a cluster; ``coordinator``: one try of a run, and ``run_plan``.
"""
