"""What a run leaves behind: picture files, an index with one row each, a run record, a gallery.

* ``storage``: the files of one output, over ``local_files`` or ``driver_files``, which do what ``files`` asks for.
* ``lease``: who may write there.
* ``run_record``: ``run.json``, what was asked for and how far it came.
* ``assets``: pictures with their parameters inside.
* ``index``: a row for each picture.
* ``comparison``: what the output has and lacks of a plan.
* ``resume``: before a run sets right what is out of step; ``moving`` moves pictures that have another name now.
* ``gallery``: pages to look at.
* ``shards``: the output as a dataset.
* ``verify``: everything read again, byte by byte.
"""
