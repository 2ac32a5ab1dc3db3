"""The images of a run. Each is drawn from plain arrays into a file and returns the characters that no font here has.

Importing this imports matplotlib, which takes a third of a second: do it where a plot is drawn.
"""

from __future__ import annotations

from linnaeus.report.confusion import confusion
from linnaeus.report.curves import curves
from linnaeus.report.fonts import advice
from linnaeus.report.grid import Shown, image_grid
from linnaeus.report.ranges import ranges
from linnaeus.report.slices import sweep_plot

__all__ = ["Shown", "advice", "confusion", "curves", "image_grid", "ranges", "sweep_plot"]
