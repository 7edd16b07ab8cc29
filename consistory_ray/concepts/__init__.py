"""Which words of a prompt name the subject, however they are written there. Pure, and needs no other room.

* ``word_forms``: a word in singular and plural.
* ``matching``: where a concept stands in a prompt.
"""
