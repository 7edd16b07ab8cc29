"""The figures of benchmarks/paper.py, one module each."""
