"""The Parquet index: a row for each picture, in parts that are only ever added and merged.

* ``rows``: the columns, and which of several rows of one asset counts.
* ``parts``: the files, written and read one by one.
* ``index``: all of them together: read, merged, and moved away where they cannot be read.
* ``writer``: how a run adds its rows.
"""
