"""The anchor cache: what scenes read of a subject, its file format and its size."""
