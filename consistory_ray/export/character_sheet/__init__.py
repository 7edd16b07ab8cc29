"""Character sheets: what one subject looks like, on paper.

* ``content``: what stands on a sheet; ``reading`` takes it from an output and an export, ``palette`` finds the colours.
* ``fonts``: which are there, and how wide words are in them.
* ``lines``: texts in lines of a width.
* ``layout``: from content to pages of ``primitives``, in points.
* ``drawing``: pages as PDF and as PNG.
* ``product``: sheets as a product of an export.
"""
