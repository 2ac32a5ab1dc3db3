"""Choose what computes the features of an image: a pretrained network, a finished model, or a plain descriptor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linnaeus.cache import default_cache
from linnaeus.console import Console
from linnaeus.data.images.decode import DECODE_VERSION
from linnaeus.data.sources import loose_images
from linnaeus.device import choose_device
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError
from linnaeus.inference.membership import Membership, held_in, images_of_weights
from linnaeus.modelfile.safetensors import ModelFile, model_path, read_model
from linnaeus.models.executors import FrozenPart, choose_executor
from linnaeus.models.network import Network
from linnaeus.models.weights.loading import describe_weights, load_weights
from linnaeus.models.weights.pretrained import IMAGENET_MEAN, IMAGENET_STD, PRETRAINED, SUGGESTED
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.contents import HashedImages
from linnaeus.stores.embeddings import default_weights

COLORS = "colors"  # the descriptor that needs no weights

GRID, DIRECTIONS = 4, 8  # cells per side of the descriptor, and directions of edges
NOTE = (
    "answers are predicted from colors and edges alone, which is far weaker than pretrained weights: get some with "
    f"`linnaeus weights pull {SUGGESTED}` or `weights import NAME FILE`"
)


@dataclass
class Backbone:
    """A function from images to features, and what identifies its results."""

    name: str
    key: str  # changes whenever the same image may get other features
    preprocessing: Preprocessing
    width: int  # number of features of an image
    # Name of the network and of its weights, as `train` takes them; None where there is none to train on.
    model: str | None = None
    weights: str | None = None
    notes: list[str] = field(default_factory=list)
    network: Network | None = None
    about: ModelFile | None = None  # what the file of a finished model says, where its answers are reviewed
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _run: Callable[[Tensor], Tensor] | None = None

    @property
    def trained(self) -> bool:
        """Whether the features were learned from images, not computed by a formula."""
        return self.network is not None

    def features(self, pixels: np.ndarray, remaining: int) -> np.ndarray:
        """(n, size, size, channels) uint8 -> (n, width) float32. `remaining`: how many images are still to come."""
        if self.network is None:
            return describe_colors(pixels)
        batch = self.preprocessing.normalize(torch.from_numpy(pixels).to(self.device))
        if self._run is None:
            part = FrozenPart(self.network, "head")
            self._run = choose_executor(part, batch[:8], remaining, record=cache_dir() / "executors.json")
        with torch.inference_mode():
            return self._run(batch).float().cpu().numpy()


def open_backbone(name: str | None, device: str) -> Backbone:
    """The backbone `name`: a network, the name or the file of weights, or `colors`; by default local weights, if any.

    Raises UserError if its weights are not on this machine.
    """
    name = name or default_weights() or COLORS
    if name == COLORS:
        return colors()
    is_weights = name in PRETRAINED or Path(name).suffix in (".safetensors", ".pth", ".pt")
    weights = name if is_weights else "imagenet"
    model = describe_weights(weights).model if is_weights else name
    if model is None:
        raise UserError(f"{weights}: does not say which network it belongs to; name the network with --backbone")
    loaded = load_weights(model, weights, classes=1)
    n = loaded.normalization
    size = n["size"] or loaded.model.usual_size
    # 0.875 is the usual share of the center crop (224 of 256).
    resize = n["resize"] or round(size / 0.875)
    interpolation = n["interpolation"] or "bilinear"
    preprocessing = Preprocessing(resize, size, "crop", interpolation, 3, tuple(n["mean"]), tuple(n["std"]))
    backbone = of_network(loaded.model, preprocessing, model, device)
    backbone.model, backbone.weights = model, weights
    backbone.notes = [note for note in loaded.notes if not note.startswith("new head")]  # which labelling does not use
    return backbone


def of_run(run: Path, device: str) -> Backbone:
    """The network of a finished model, without its head."""
    network, about = read_model(model_path(run))
    backbone = of_network(network, about.preprocessing, str(run), device)
    backbone.model, backbone.weights, backbone.about = str(about.arch["name"]), str(run), about
    return backbone


def unseen_images(folder: Path, paths: list[str], run: Path, about: ModelFile, console: Console) -> list[str]:
    """The images of `folder` that the model of `run` was neither trained nor chosen on; on others it looks too good.

    Raises UserError if there are none.
    """
    membership = Membership.of_model(about, run)
    if membership is None:
        console.warn(f"{run}: holds no record of its images; the accuracy is too high if some of them are in {folder}")
        return paths
    table = loose_images(str(folder), (str(folder / path) for path in paths))
    splits = membership.split_of(HashedImages(table, default_cache()).hashes(np.arange(len(paths))))
    unseen = [path for path, split in zip(paths, splits.tolist(), strict=True) if split not in ("train", "valid")]
    if not unseen:
        raise UserError(f"{folder}: {run} was trained on all of its images; give a folder of new ones")
    if len(unseen) < len(paths):
        console.warn(f"{len(paths) - len(unseen):,} images of {folder} are left out, because {run} was trained on them")
    return unseen


def warn_of_trained_images(folder: Path, paths: list[str], backbone: Backbone, console: Console) -> None:
    """Warn where the weights of a backbone were trained on images of the folder."""
    contents = images_of_weights(backbone.weights or "", with_head=False)
    n = int(held_in(contents, loose_images(str(folder), (str(folder / path) for path in paths))).sum())
    if n:
        console.warn(
            f"{backbone.weights} was trained on {n:,} of these {len(paths):,} images: the accuracy that the page shows "
            "is too high; choose another --backbone, or review them with `linnaeus label RUN FOLDER`"
        )


def of_network(network: Network, preprocessing: Preprocessing, name: str, device: str) -> Backbone:
    """The frozen part of a network as a backbone."""
    chosen = choose_device(device)
    network = network.to(chosen).eval()
    digest = hashlib.sha256(json.dumps([DECODE_VERSION, preprocessing.to_dict(), str(network.arch)]).encode())
    for key, tensor in network.state_dict().items():
        if network.stage_of(key) != "head":
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    probe = torch.zeros(1, preprocessing.channels, preprocessing.size, preprocessing.size, device=chosen)
    with torch.inference_mode():
        width = FrozenPart(network, "head")(probe).shape[1]
    return Backbone(name, digest.hexdigest()[:32], preprocessing, width, network=network, device=chosen)


def colors() -> Backbone:
    """Colors and edges in a grid: no weights needed, and far weaker than any trained network."""
    preprocessing = Preprocessing(96, 96, "squash", "bilinear", 3, IMAGENET_MEAN, IMAGENET_STD)
    key = hashlib.sha256(f"colors 1 {DECODE_VERSION}".encode()).hexdigest()[:32]
    return Backbone(COLORS, key, preprocessing, GRID * GRID * (6 + DIRECTIONS), notes=[NOTE])


def describe_colors(pixels: np.ndarray) -> np.ndarray:
    """Mean and deviation of the colors, and a histogram of edge directions, in each cell of a 4 x 4 grid.

    (n, s, s, 3) uint8 with s a multiple of 4 -> (n, 224) float32. The histogram is that of Dalal and Triggs 2005,
    without its overlapping blocks.
    """
    n, side = pixels.shape[:2]
    cell = side // GRID
    x = pixels.astype(np.float32) / 255
    cells = x.reshape(n, GRID, cell, GRID, cell, 3)
    gray = x.mean(3)
    dy, dx = np.gradient(gray, axis=(1, 2))
    # Directions without sign: an edge looks the same from both sides.
    bins = ((np.arctan2(dy, dx) % np.pi) / np.pi * DIRECTIONS).astype(np.int64) % DIRECTIONS
    edges = np.zeros((n, side, side, DIRECTIONS), np.float32)
    np.put_along_axis(edges, bins[..., None], np.hypot(dy, dx)[..., None], 3)
    histogram = edges.reshape(n, GRID, cell, GRID, cell, DIRECTIONS).mean((2, 4))
    # The magnitudes of edges are small; the factor gives them a weight beside the colors.
    parts = [cells.mean((2, 4)), cells.std((2, 4)), 4 * histogram]
    return np.concatenate([part.reshape(n, -1) for part in parts], 1).astype(np.float32)
