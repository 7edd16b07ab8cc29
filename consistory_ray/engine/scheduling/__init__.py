"""Who does what next. Pure: no Ray, no clock, no files; the time is an argument."""
