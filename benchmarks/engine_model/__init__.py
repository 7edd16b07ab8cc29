"""Parts of ``benchmarks/engine.py``: measurements of the real engine, and a model of clusters larger than any here."""
