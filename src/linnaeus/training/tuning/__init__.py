"""What a phase measures before its first epoch."""
