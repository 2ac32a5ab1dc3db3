"""The format of a run folder: names of its files, writing, reading and comparing them."""
