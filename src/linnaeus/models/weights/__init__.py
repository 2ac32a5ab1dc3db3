"""Pretrained weights: their table, the local folder, reading files and loading tensors."""
