"""What crosses the border, looked at in one place: addresses, files from outside, text for a terminal. Pure."""
