"""probe(): compare backbones on a source, and write what was measured."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.cache import default_cache
from linnaeus.check.data_check import copies
from linnaeus.check.inspection import merge_groups
from linnaeus.console import Console, counted
from linnaeus.data.images.bitdepth import used_bits
from linnaeus.data.sources import refuse_inside
from linnaeus.data.table import Table
from linnaeus.device import choose_device
from linnaeus.distributed.engine import Engine
from linnaeus.errors import JobError, UserError
from linnaeus.files import disk_errors, numbered, read_object, remove_scratch
from linnaeus.inference.membership import held_in, images_of_weights
from linnaeus.models.weights.store import local_backbones
from linnaeus.probe.backbones import Backbone, Candidate, load_backbone, parse_backbones
from linnaeus.probe.comparison import Comparison, Failure, Result
from linnaeus.probe.evaluation import ProbeEvaluator
from linnaeus.probe.features import Cost, FeatureExtractor, StoredFeatures
from linnaeus.probe.result_files import PROBE_JSON, write_results
from linnaeus.recipe import load_recipe
from linnaeus.runs.ownership import removed_if_empty
from linnaeus.text import such_as
from linnaeus.training.setup.choice import TRANSFER
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.resolve import open_split, open_table, refuse_split_settings
from linnaeus.training.setup.samples import measure_normalization

SPLITS = ("train", "valid")  # the test images are not looked at: they measure the chosen model later


@dataclass(frozen=True)
class Probe:
    """The result of a probe."""

    path: Path  # the folder of probe.json, probe.csv and probe.png
    comparison: Comparison
    command: str | None  # the `linnaeus train` command for the recommended backbone
    protocol: str  # how accuracy was measured, in words


def probe(
    source: str | Path | Table,
    backbones: str = "auto",
    *,
    out: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    seed: int | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Probe:
    """Compare backbones on the images of `source`: features once for each, one linear head each.

    `backbones`: names separated by commas, as in `parse_backbones`; `A+B` concatenates features, `auto` takes the
    weights on this machine and some recommended ones. `settings` are recipe keys of `data` and `model.arguments`. The
    files are written to `out`, by default runs/probe-<n>. What was computed before comes from the cache. A backbone
    that fails is reported and left out; JobError if all do. Raises UserError for invalid input.
    """
    console = console or Console()
    settings = dict(settings or {})
    _check_settings(settings)
    chosen = choose_device(device)
    local = local_backbones()
    candidates = parse_backbones(backbones, local, chosen.type)
    request = Request(source, settings=settings, seed=seed, device=device)
    table = open_table(request)
    table.require_one_label("probe")
    recipe = _data_recipe(settings, seed)
    refuse_split_settings(settings, recipe, table)
    table = open_split(table, recipe, console)
    # A folder of results inside the source would count as data in the next run.
    refuse_inside(out or "runs", table)
    table = _copies_together(table, console)
    with removed_if_empty(_folder(out)) as folder:
        for line in candidates.notes:
            console.say(line)
        job = _Job(table, settings, seed, chosen, console)
        comparison = job.compare(candidates.chosen, folder)
        command = _command(str(source), comparison, settings, seed)
        write_results(folder, comparison, job.evaluator, command, plot=True)
    return Probe(folder, comparison, command, str(job.evaluator))


def _copies_together(table: Table, console: Console) -> Table:
    """The table with copies in one group: otherwise a head would be evaluated on what it has seen."""
    groups = copies(table, console=console)
    if n := int((groups != np.arange(len(table))).sum()):
        console.warn(
            f"{counted(n, 'image')} of {table.source} are copies of others; no head is evaluated on an image that has "
            "a copy in its training images"
        )
        return merge_groups(table, groups)
    return table


def _check_settings(settings: Mapping[str, Any]) -> None:
    for key in settings:
        if not key.startswith(("data.", "model.arguments.")):
            raise UserError(
                f"--set {key}: a probe solves a linear head on a frozen network, so only the keys of data and "
                "model.arguments apply; use `linnaeus train` for the others"
            )


def _data_recipe(settings: Mapping[str, Any], seed: int | None) -> Any:
    """The recipe that `train` takes for trained weights, with the user's settings: it splits the source."""
    data = {key: value for key, value in settings.items() if key.startswith("data.")}
    return load_recipe(TRANSFER, data | ({} if seed is None else {"seed": seed}))


def _folder(out: str | Path | None) -> Path:
    """The folder to write to, which exists afterwards. Raises UserError if another program's files are in it."""
    if out is None:
        return numbered(Path("runs") / "probe")
    path = Path(out)
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path}: is a file; choose another --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        remove_scratch(path)
        if any(path.iterdir()) and "backbones" not in read_object(path / PROBE_JSON):
            raise UserError(f"{path}: is not empty, and holds no {PROBE_JSON} of a probe to replace; choose another")
    return path


@dataclass
class _Job:
    """The work of one probe."""

    table: Table
    settings: dict[str, Any]
    seed: int | None
    device: torch.device
    console: Console
    measured: dict[Backbone, tuple[StoredFeatures, Cost, str]] = field(default_factory=dict)
    """What is known of each backbone: features, cost and license."""
    failed: set[Backbone] = field(default_factory=set)
    bits: int | None = None

    @property
    def evaluator(self) -> ProbeEvaluator:
        return ProbeEvaluator(self.table, self.seed or 0, default_cache(), self.console)

    def compare(self, candidates: tuple[Candidate, ...], folder: Path) -> Comparison:
        """Measure all candidates; the files are written after each, so that an interruption loses none."""
        # The range of 16-bit images is measured once, so that all backbones see the same pixels.
        self.bits = self.settings.get("data.bits") or used_bits(self.table, self.table.where("train"))
        comparison = Comparison(self.table, ())
        for number, candidate in enumerate(candidates, 1):
            self.console.say(f"[{number}/{len(candidates)}] {candidate.name}")
            results, failures = comparison.results, comparison.failures
            try:
                results = (*results, self._measure(candidate))
            except UserError as error:
                # The line above already names the candidate.
                reason = str(error).removeprefix(f"{candidate.name}: ")
                self.console.warn(f"{candidate.name}: {reason}")
                failures = (*failures, Failure(candidate, reason))
            comparison = Comparison(self.table, results, failures)
            if results:
                write_results(folder, comparison, self.evaluator, None, plot=False)
        if not comparison.results:
            raise JobError("no backbone could be compared, for the reasons above; choose others with --backbones")
        return comparison

    def _measure(self, candidate: Candidate) -> Result:
        for backbone in candidate.backbones:
            # A backbone may be part of several candidates; it fails once, not each time.
            if backbone in self.failed:
                raise UserError(f"{backbone.model} failed above")
            if backbone not in self.measured:
                try:
                    self.measured[backbone] = self._extract(backbone)
                except UserError:
                    self.failed.add(backbone)
                    raise
        parts = [self.measured[backbone] for backbone in candidate.backbones]
        answers = self.evaluator.evaluate([features for features, _, _ in parts])
        cost = parts[0][1]
        for _, other, _ in parts[1:]:
            cost = cost + other
        licenses = [license for _, _, license in parts]
        return Result(candidate, answers, cost, " + ".join(name or "unknown" for name in licenses))

    def _extract(self, backbone: Backbone) -> tuple[StoredFeatures, Cost, str]:
        """Features, cost and license of a backbone, with the network and preprocessing that `train` would use.

        Raises UserError for a backbone that was trained on these images: what it remembers would be measured.
        """
        if n := int(held_in(images_of_weights(backbone.weights, with_head=False), self.table).sum()):
            raise UserError(
                f"was trained on {n:,} of these {len(self.table):,} images, so that its accuracy on them would be too "
                "high; compare it on other images"
            )
        settings = dict(self.settings)
        if self.bits is not None:
            settings["data.bits"] = self.bits
        loaded = load_backbone(backbone, self.table, settings, self.console.progress_only())
        network, preprocessing = loaded.network, loaded.preprocessing
        extractor = FeatureExtractor(self.device, self.console, engine=Engine(self.device.type))
        if loaded.measures_pixels:
            preprocessing = measure_normalization(extractor.decode(self.table, "train", preprocessing), preprocessing)
        frozen = extractor.frozen(network, preprocessing)
        features = extractor.extract(frozen, self.table, [s for s in SPLITS if len(self.table.where(s))])
        # The same files are unreadable for every backbone, so they are reported once.
        if features.left_out and not self.measured:
            n, example = len(features.left_out), ": ".join(features.left_out[0])
            self.console.warn(f"{counted(n, 'unreadable image')} left out{such_as(n, example)}")
        return features, extractor.cost(frozen), network.license


def _command(source: str, comparison: Comparison, settings: Mapping[str, Any], seed: int | None) -> str | None:
    """The `train` command for the recommended backbone."""
    result = comparison.recommended
    if result is None:
        return None
    (backbone,) = result.candidate.backbones
    words = ["linnaeus", "train", shlex.quote(source), backbone.arguments]
    words += [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in settings.items()]
    return " ".join([*words, *([] if seed is None else [f"--seed {seed}"])])
