"""The Parquet index: its rows, its parts and their merging, its comparison with the files."""
