"""From an output to assets that people ship: chosen, cut out, laid out, signed, and listed in a manifest."""
