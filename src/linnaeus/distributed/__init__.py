"""Several processes: environment, process group, launcher, engine."""
