"""Checks of a data set before training: files, images, duplicates, classes and labels."""
