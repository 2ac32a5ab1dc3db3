"""Training and inference in several processes: environment, process group, launcher, engine."""
