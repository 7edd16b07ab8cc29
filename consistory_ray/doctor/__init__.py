"""What this machine is good for: its devices, kernels, precision and speed, measured, and what is wrong with it.

* ``examination``: everything in order, in about two minutes.
* ``diagnosis``: what was found, as plain values; ``verdicts``: what of it is wrong, and what to do; ``report``: tables.
* ``machine``, ``kernels``, ``precision``, ``copies``, ``timings``: the measurements.
* ``models``, ``random_models``: what is measured, without a download.
* ``estimates``: from few measured steps to a job.
"""
