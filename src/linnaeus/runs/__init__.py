"""The run folder: its layout, and everything that reads or writes its files."""
