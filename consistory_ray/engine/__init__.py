"""The engine: one coordinator, many workers, every asset exactly once. The only place that imports Ray.

Start with :func:`consistory_ray.engine.coordinator.run_plan`. The modules that decide (``scheduler``, ``attempts``,
``faults``) and those that describe (``options``, ``events``) are pure; Ray is imported when a run starts.
"""
