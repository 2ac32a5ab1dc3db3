"""Stores: decoded images and the activations of frozen stages, computed once and kept on disk."""
