"""Sweeps: search for the best settings of a recipe with Optuna."""
