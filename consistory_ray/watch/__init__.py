"""Who looks at a run: events become progress, logs, metrics, status and reports.

* ``tally``: a run's numbers, and its failures by cause.
* ``progress``: those numbers on a terminal while it goes on.
* ``logs``: a line for each event.
* ``metrics``: the table of all metrics, and how they are kept; ``observation`` feeds events into them.
* ``status``: how far an output is, from storage alone; ``status_display`` shows it again and again.
* ``reports``: what the command line prints when all is over.
"""
