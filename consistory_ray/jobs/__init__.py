"""What users write: the job file, read from YAML, JSON, CSV or Parquet, checked, and told what is wrong with it.

* ``allowlist``: which places a run may read from and write to.
* ``sources``: a file that somebody named becomes bytes, or a reason in plain words.
* ``readers``: bytes become the plain data of a job; ``yaml_events`` and ``tables`` know the two layouts with traps.
* ``stored_subjects``: subjects that an earlier run has made are put in.
* ``job``: the data becomes a :class:`~consistory_ray.jobs.job.RenderJob`; ``subject``: individuals in it, ``matrix``:
  scenes of theirs that are combinations.
* ``templates``, ``template_draws``: dynamic prompts, and what they become; ``wildcards`` reads the lists that they draw
  from, ``dynamic_checks`` says what is wrong with them.
* ``validation``: runs pydantic's checks of those types and ours together, and bounds how much is told.
* ``checks``: our own checks: what must hold beyond types. How any finding is worded is in ``guards.problems``.
* ``ids``, ``model_names``: which ids and which models a job may name.
"""
