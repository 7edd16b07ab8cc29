"""How long tests wait for what has to come: waiting costs nothing where all is well, and a test machine may be crowded.

What measures speed takes CPU seconds or ratios in place of a clock's.
"""

from __future__ import annotations

PATIENCE = 600.0
"""Seconds after which something hangs that is expected of other processes: a Ray that starts, pictures, an end."""
SOON = 200.0
"""Seconds after which something is late that needs neither a start nor a queue: an exit after a signal, a refusal."""
