"""Who looks at a run: events become progress, logs, metrics, status and reports."""
