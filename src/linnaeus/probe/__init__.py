"""Comparison of pretrained backbones on the user's images: features once, one linear probe each."""
