"""Run a trained model: load, predict, evaluate."""
