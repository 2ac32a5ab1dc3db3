"""Heat maps over images, for the pages and for the image of an explanation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from linnaeus.errors import UserError
from linnaeus.report.image_grid import fit_square

if TYPE_CHECKING:
    from linnaeus.inference.classifier import Classifier

HeatMaps = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]
"""Images as the network sees them (n, size, size, C) uint8, and a class of each (n,) -> n heat maps over the images,
(side, side, 3) uint8."""

SIDE = 224  # pixels at least

# Inferno gets lighter evenly from end to end, so it works for any kind of color vision and in gray. Its lower end is as
# dark as a shadow, so the scale starts above it.
COLORS, LOWEST = "inferno", 0.25
DARKEST, LIGHTEST = 0.06, 0.6  # range of the gray image beneath: darker than the upper half of the scale
DIM = 0.3  # images are brightened as if their lightest parts had at least this value
COVER = 0.82  # opacity of the color where the heat is 1
RISE = 0.7  # exponent below 1, so that little heat is visible
TEXTURE = 0.2  # share of the light and shadow of the image that stays in the colors
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def overlay(image: np.ndarray, heat: np.ndarray, side: int | None = None) -> np.ndarray:
    """A heat map over its image: (H, W, 3) uint8, or (side, side, 3) to enlarge a square image.

    `image` is (H, W), (H, W, 1) or (H, W, 3) uint8, `heat` (H, W) in 0..1. The image is shown in gray, so that color
    means heat, and dimmed, so that more heat is lighter; dark images are brightened first.
    """
    assert image.shape[:2] == heat.shape, f"an image of {image.shape} and a map of {heat.shape}"
    if side is not None:
        assert heat.shape[0] == heat.shape[1], "only a square heat map keeps its proportions"
        image = fit_square(image, side)
        enlarged = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        heat = np.asarray(enlarged)
    heat = heat.astype(np.float32).clip(0, 1)
    gray = image.astype(np.float32) / 255
    gray = gray @ np.array(LUMA, np.float32) if gray.ndim == 3 and gray.shape[2] == 3 else gray.reshape(heat.shape)
    return _blend((gray / max(float(np.percentile(gray, 98)), DIM)).clip(0, 1), heat)


def ramp(width: int, height: int) -> np.ndarray:
    """The color scale from 0 to 1 over medium gray: (height, width, 3) uint8."""
    heat = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
    return _blend(np.full_like(heat, 0.4), heat)


def _blend(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend colors for `heat` over `gray`, both (H, W) in 0..1 -> (H, W, 3) uint8."""
    beneath = (DARKEST + (LIGHTEST - DARKEST) * gray)[..., None]
    colors = colormaps[COLORS](LOWEST + (1 - LOWEST) * heat)[..., :3] * (1 - TEXTURE + TEXTURE * gray[..., None])
    cover = (COVER * heat**RISE)[..., None]
    return (255 * ((1 - cover) * beneath + cover * colors)).round().clip(0, 255).astype(np.uint8)


def heat_maps(classifier: Classifier) -> HeatMaps | None:
    """For `write_report`: Grad-CAM at the usual stage; None for a network without a stage that has positions."""
    from linnaeus.explain.saliency import AT_ONCE, choose_stages, grad_cam

    # A network without maps is not an error: the report then shows images only.
    preprocessing = classifier.preprocessing
    try:
        (stage,) = choose_stages(classifier.network, preprocessing.size)
    except UserError:
        return None

    def draw(images: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
        drawn = []
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            x = preprocessing.normalize(torch.from_numpy(some).to(classifier.device))
            heat = grad_cam(classifier.network, x, targets[start : start + AT_ONCE], (stage,))[stage]
            drawn += [overlay(image, of, max(preprocessing.size, SIDE)) for image, of in zip(some, heat, strict=True)]
        return drawn

    return draw
