"""embed(): the features of all images of a source in one file, in constant memory, on any number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import Console
from linnaeus.data import tree
from linnaeus.data.archived import holds_folder, top_folder
from linnaeus.data.archives.archive import is_archive
from linnaeus.data.images.bitdepth import used_bits
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.sources import loose_images, open_source
from linnaeus.data.table import Table
from linnaeus.device import choose_device
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.errors import UserError
from linnaeus.inference.inputs import expand
from linnaeus.modelfile.safetensors import MODEL, model_path, read_model
from linnaeus.models import Network
from linnaeus.models.weights.store import local_backbones
from linnaeus.preprocess import Preprocessing
from linnaeus.probe.backbones import load_backbone, parse_backbones
from linnaeus.probe.feature_files import FeatureFile, writer_of
from linnaeus.probe.features import FeatureExtractor

KEYS = ("size", *(f"data.{key}" for key in ("size", "resize", "fit", "interpolation", "normalize", "channels", "bits")))
"""Recipe keys that change the features of a backbone."""


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    path: Path
    images: int
    width: int  # features per image
    left_out: list[tuple[str, str]]  # (sample id, reason) of the images that cannot be read


def embed(
    model: str,
    source: str | Path,
    out: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Embedded:
    """Write the features of all images of `source` to `out`, a .npz, .parquet or .safetensors file.

    `model` is a run folder, a model file, or a backbone as `probe` takes it, with the recipe keys `settings`. Features
    are the input of the model's last layer; those of a bare backbone are its pooled output. They stay in the cache, so
    that the same call continues after an interruption. Raises UserError for invalid input.
    """
    console = console or Console()
    path = Path(out)
    with group.propagate_errors():
        write = writer_of(path)
        table = open_images(source)
    # One process per machine downloads weights; the others read them.
    network, preprocessing = group.local_main_first(partial(_load, model, table, dict(settings or {}), console))
    # Without splits the images are decoded and stored once, in their own order.
    whole = dataclasses.replace(table, split=np.full(len(table), "", "<U5"))
    extractor = FeatureExtractor(choose_device(device), console, group)
    features = extractor.extract(extractor.frozen(network, preprocessing), whole, [""])
    if group.is_main:
        with console.progress(f"writing {path.name}") as advance:
            write(path, FeatureFile(table, features, model, advance))
    return Embedded(path, len(features.indices), features.width, features.left_out)


def open_images(source: str | Path) -> Table:
    """The table of a source that need not be one to train on: one class is enough, and loose images have none."""
    folder = Path(source).expanduser()
    if holds_folder(folder):
        folder = top_folder(folder)[0]
    entries = tree.scan(folder) if tree.is_folder(folder) or is_archive(folder) else []
    if not any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in entries if entry.is_file()):
        return open_source(source, lenient=True)
    paths = (str(Path(path).absolute()) for path in expand([str(folder)]))
    return dataclasses.replace(loose_images(str(source), paths), root=str(folder.absolute()))


def _load(model: str, table: Table, settings: dict[str, Any], console: Console) -> tuple[Network, Preprocessing]:
    """The network of a model file, or of a backbone, and its preprocessing."""
    if _is_model_file(model):
        if settings:
            raise UserError(f"--set {next(iter(settings))}: {model} states its own preprocessing; leave it out")
        network, about = read_model(model_path(model))
        if network.arch["name"] == "custom":
            raise UserError(f"{model}: the stages of a custom network are unknown; use a backbone or a model of ours")
        return network, about.preprocessing
    chosen = parse_backbones(model, local_backbones(), "cpu", "MODEL").chosen
    if len(chosen) > 1 or len(chosen[0].backbones) > 1:
        raise UserError(f"{model}: several backbones; embed writes the features of one: run it once for each")
    _check_settings(settings)
    bits = settings.get("data.bits") or used_bits(table, np.arange(len(table)))
    settings |= {} if bits is None else {"data.bits": bits}
    # The pooled output of the last stage, not the stages that the recipe of `train` joins for its head.
    settings = {"model.head": None, **settings}
    backbone = load_backbone(chosen[0].backbones[0], table, settings, console.progress_only())
    console.say(f"license of the weights: {backbone.network.license or 'unknown'}")
    return backbone.network, backbone.preprocessing


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for a recipe key that has no effect on features."""
    for key, value in settings.items():
        if key not in KEYS and not key.startswith(("model.arguments.", "model.head")):
            other = ": give the weights as MODEL, such as NAME=FILE" if key == "model.weights" else ""
            raise UserError(
                f"--set {key}: has no effect on the features of a backbone{other}; the keys that have are "
                f"{', '.join(KEYS)}, model.head and model.arguments"
            )
        if key == "data.normalize" and value == "data":
            raise UserError(f"--set {key}=data: embed has no training images to measure; use weights, imagenet or none")


def _is_model_file(model: str) -> bool:
    path = Path(model).expanduser()
    if model.lower().endswith(".onnx") and path.is_file():
        raise UserError(f"{model}: an ONNX file gives logits, not features; give the run folder or model.safetensors")
    if path.is_dir():
        return (path / MODEL).is_file()
    if not path.is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        # Weights and model files are both safetensors; ours carry a description.
        with safe_open(path, "np") as file:
            return "linnaeus" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
