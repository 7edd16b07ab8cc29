"""Scoring an output: workers that hold metrics, and who hands subjects out to them."""
