"""Explanations: saliency maps and nearest training images."""
