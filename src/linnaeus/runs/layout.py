"""Names of the files in a run folder."""

from __future__ import annotations

MANIFEST = "checkpoint.json"
"""In the folder `checkpoint`: what the checkpoint consists of, written last."""
