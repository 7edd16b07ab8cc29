"""Is it still the same individual? Metrics behind one small protocol, their scores, and checks of single pictures."""
