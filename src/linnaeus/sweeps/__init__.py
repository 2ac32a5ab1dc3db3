"""Sweeps: many trials of one recipe over a space of settings, by Optuna, and what they say."""
