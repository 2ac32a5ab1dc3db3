"""Metrics, confidence intervals, calibration and selective prediction. NumPy and SciPy only."""
