"""Everything after the last step of a run."""
