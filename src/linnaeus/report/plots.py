"""The plots of a run folder. Each function draws plain arrays into a file and returns the characters without a font.

Importing this imports matplotlib, which takes a third of a second: import it where something is drawn.
"""

from __future__ import annotations

from linnaeus.report.confusion import confusion
from linnaeus.report.curves import curves
from linnaeus.report.fonts import advice
from linnaeus.report.image_grid import PredictedImage, image_grid
from linnaeus.report.penalty_curve import penalty_curves
from linnaeus.report.range_test import ranges
from linnaeus.report.sweep_plot import sweep_plot

__all__ = ["PredictedImage", "advice", "confusion", "curves", "image_grid", "penalty_curves", "ranges", "sweep_plot"]
