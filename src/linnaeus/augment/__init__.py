"""Augmentation on batches of tensors."""
