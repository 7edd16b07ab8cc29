"""Who may write to an output: one run at a time, known by its lease."""
