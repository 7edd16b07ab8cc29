"""What crosses the border, looked at in one place: addresses, files, values and texts from outside. Pure.

* ``places``: an address as people write it becomes a file system and a path.
* ``outside``: files that others may have put there, and JSON, read with limits.
* ``choices``: the names that some settings choose from.
* ``setting_ranges``: which values the method's settings may have, wherever they come from.
* ``problems``: what is wrong with a document, in plain words: where, what was found, what to write instead.
* ``numerics``: numbers that go wrong quietly, and pictures of nothing but overflow.
* ``redaction``: secrets and control characters, taken out of text.
* ``terminal``: the door to the terminal, which lets no such text through.
"""
