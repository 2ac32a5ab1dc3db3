"""A heat map laid over its picture: pixels, for a sheet or a page."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image

from linnaeus.report.grid import fit_square

# Inferno gets lighter evenly from end to end, so it is read by any kind of color vision, and in gray. Its lower end is
# as dark as a shadow: the scale starts above it.
COLORS, LOWEST = "inferno", 0.25
DARKEST, LIGHTEST = 0.05, 0.7  # of the gray picture beneath: darker than the upper half of the scale
COVER = 0.85  # of the picture's gray, where the heat is 1
TEXTURE = 0.35  # of the picture's light and shadow stays in the colors
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def overlay(picture: np.ndarray, heat: np.ndarray, side: int | None = None) -> np.ndarray:
    """A heat map over its picture: (H, W, 3) uint8, or (side, side, 3) where a square picture is to be enlarged.

    picture (H, W), (H, W, 1) or (H, W, 3) uint8; heat (H, W) in 0..1. The picture is gray and darkened, so that all
    color is the heat's and more heat is always lighter; where there is none the picture stays as it is.
    """
    assert picture.shape[:2] == heat.shape, f"a picture of {picture.shape} and a map of {heat.shape}"
    if side is not None:
        assert heat.shape[0] == heat.shape[1], "only a square keeps its shape"
        picture = fit_square(picture, side)
        enlarged = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        heat = np.asarray(enlarged)
    heat = heat.astype(np.float32).clip(0, 1)
    gray = picture.astype(np.float32) / 255
    gray = gray @ np.array(LUMA, np.float32) if gray.ndim == 3 and gray.shape[2] == 3 else gray.reshape(heat.shape)
    beneath = (DARKEST + (LIGHTEST - DARKEST) * gray)[..., None]
    colors = colormaps[COLORS](LOWEST + (1 - LOWEST) * heat)[..., :3] * (1 - TEXTURE + TEXTURE * gray[..., None])
    cover = (COVER * heat**0.7)[..., None]
    return (255 * ((1 - cover) * beneath + cover * colors)).round().clip(0, 255).astype(np.uint8)


def ramp(width: int, height: int) -> np.ndarray:
    """The scale from 0 to 1, as it looks over a picture of middle gray: (height, width, 3) uint8."""
    heat = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
    return overlay(np.full((height, width), 128, np.uint8), heat)
