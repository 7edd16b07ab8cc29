"""The pages that people look at.

* ``thumbnails``: small pictures of large ones.
* ``rows``: which rows of the index are shown.
* ``pages``: the pages themselves, from ``templates``.
"""
