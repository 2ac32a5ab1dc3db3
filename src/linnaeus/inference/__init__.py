"""Inference: load a model, predict images, evaluate on a split."""
