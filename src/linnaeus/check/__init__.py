"""Checks of a dataset before training: files, images, duplicates, classes and labels."""
