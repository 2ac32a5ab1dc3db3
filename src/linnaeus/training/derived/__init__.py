"""Runs that are derived from a finished run, without training."""
