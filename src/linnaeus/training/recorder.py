"""Record what a run produces while it trains: history, tuned values, the best model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from linnaeus.check.labels import held_out_findings
from linnaeus.errors import UserError
from linnaeus.files import write_text
from linnaeus.modelfile.safetensors import ModelFile, read_header, write_model
from linnaeus.runs.history import Row
from linnaeus.runs.layout import LABEL_CHECK
from linnaeus.runs.model_selection import ModelSelection
from linnaeus.runs.penalties import Trial, penalties_file, write_penalties
from linnaeus.runs.tracking import Tracking
from linnaeus.training.best import Best
from linnaeus.training.setup.identity import TunedValues
from linnaeus.training.setup.prepare import Prepared
from linnaeus.training.tuning.rangetest import RangeTest

T = TypeVar("T")


class Recorder:
    """Keeps the history in memory and nothing else; `RunRecorder` writes a run folder."""

    def __init__(self) -> None:
        self.rows: list[Row] = []  # history so far
        self.tuned = TunedValues()  # values that were chosen so far, or by the process that the run resumes

    def add_epoch(self, row: Row) -> None:
        """Record the history row of an epoch."""
        self.rows.append(row)

    def save_model(self, best: Best) -> None:
        """Save the best model so far."""

    def require_folder(self) -> None:
        """Raise JobError if the folder of the run was moved or removed."""

    def saved_model(self) -> str:
        """Where the best model so far is saved, for a message."""
        return "not saved"

    def record(self, values: dict[str, T], number: int, value: T) -> None:
        """Keep what was chosen for phase `number`; `values` are those of one kind in `tuned`."""
        if values.get(str(number)) != value:  # JSON keys are strings
            values[str(number)] = value
            self.write_tuned()

    def write_tuned(self) -> None:
        """Write the tuned values, which a resumed run uses again because its result depends on them."""

    def record_penalties(self, number: int, trials: Sequence[Trial]) -> None:
        """Keep how the penalty of the head that phase `number` solved was chosen."""

    def record_held_out(self, images: np.ndarray, probabilities: np.ndarray) -> None:
        """Keep which labels look wrong, on rank 0.

        `images` (m,) of the training images have `probabilities` (m, classes) by heads that had not seen them.
        """

    def record_rate(self, number: int, test: RangeTest) -> None:
        """Record the range test of phase `number`."""


class RunRecorder(Recorder):
    """Writes to the run folder, on rank 0; keeps the tuned values on all ranks."""

    def __init__(self, prepared: Prepared):
        super().__init__()
        self.prepared, self.folder, self.identity = prepared, prepared.folder, prepared.identity
        self.is_main = prepared.engine.is_main
        self.recipe = prepared.recipe  # the recipe with the values that were tuned so far
        self.rows = prepared.folder.rows
        self.tuned = prepared.identity.tuned
        self.tracking: Tracking | None = None  # told about each epoch, on rank 0
        self.digest = ""  # SHA-256 of the tensors of the model file that this process wrote

    def add_epoch(self, row: Row) -> None:
        if self.is_main:
            self.folder.add(row)
        if self.tracking is not None:
            self.tracking.add_epoch(row, len(self.rows))

    def require_folder(self) -> None:
        if self.is_main:
            self.folder.require()

    def record_rate(self, number: int, test: RangeTest) -> None:
        """Keep the learning rate in the recipe, and plot how it was chosen."""
        from linnaeus.report.range_test import ranges  # matplotlib takes long to import

        if self.is_main:
            path = self.folder.path / f"lr-phase{number}.png"
            ranges(test.rates, test.losses, test.smoothed, test.chosen, test.reason, path)
        self.record(self.tuned.rates, number, test.chosen)

    def record_penalties(self, number: int, trials: Sequence[Trial]) -> None:
        """Keep how the penalty of a solved head was chosen, for the curves."""
        if self.is_main:
            self.folder.require()
            write_penalties(penalties_file(self.folder.path, number), trials)

    def record_held_out(self, images: np.ndarray, probabilities: np.ndarray) -> None:
        table = self.prepared.table
        if self.prepared.inspection.result.get("weights"):
            return  # the data check has compared them with embeddings
        training = self.prepared.samples["train"].kept(table.where("train"))
        findings = held_out_findings(table, training[images], probabilities)
        self.folder.require()
        note = f"the labels of {len(images):,} training images were compared with heads that had not seen the image"
        labels = int(table.labels[training[images]].size)
        content = {"labels": labels, "notes": [note], "findings": [finding.to_dict() for finding in findings]}
        write_text(self.folder.file(LABEL_CHECK), json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_tuned(self) -> None:
        """Write the tuned values: to run.json for resuming, and to recipe.toml, which then repeats the run."""
        if self.is_main:
            self.folder.require()
            self.identity.write(self.folder.checkpoint)
        recipe = self.tuned.apply(self.recipe)
        if recipe != self.recipe:
            self.recipe = recipe
            if self.is_main:
                self.folder.write_recipe(recipe)

    def save_model(self, best: Best) -> None:
        """Write the model file, with the validation metrics that chose the model."""
        assert best.figures is not None
        if self.is_main:
            about = self.model_file({"valid": best.figures.to_dict()})
            self.folder.require()
            self.digest = write_model(self.folder.model, best.state, about)

    def selection(self, phase: int, epoch: int) -> ModelSelection:
        """What chose the model of an epoch, in words."""
        best = {"by": self.recipe.best, "phase": phase, "epoch": epoch}
        return ModelSelection.of(self.recipe.model_dump(mode="json"), best, len(self.rows))

    def saved_model(self) -> str:
        path = self.folder.model
        try:
            figures = read_header(path).metrics["valid"]
        except (UserError, KeyError):
            return "there is no model yet"
        # The file itself is asked, since the last attempt to replace it may have failed.
        row = next((row for row in self.rows if row.valid_loss == figures["loss"]), None)
        epoch = "an earlier epoch" if row is None else self.selection(row.phase, row.epoch).place
        return f"the best model so far ({epoch}) is in {path}"

    def model_file(self, metrics: dict[str, Any]) -> ModelFile:
        """The header of the model file."""
        prepared = self.prepared
        arch = dict(prepared.network.arch)
        if arch["arguments"].get("aux"):  # auxiliary heads are for training only
            arch["arguments"] = {**arch["arguments"], "aux": False}
        license = {"weights_license": prepared.network.license} if prepared.network.license else {}
        hashes = prepared.inspection.hashes
        counts = {split: len(samples) for split, samples in prepared.samples.items()}
        return ModelFile(
            arch=arch,
            classes=prepared.table.classes,
            names=prepared.table.names,
            preprocessing=prepared.preprocessing,
            metrics=metrics,
            data={
                "kind": prepared.table.kind,
                "counts": counts,
                "fingerprint": self.identity.fingerprint,
                "contents": prepared.membership.to_dict(),
                "unfinished": True,  # until the run has ended
            }
            | ({"perceptual": hashes.to_dict()} if hashes is not None else {})
            | license
            | ({"forgotten": self.identity.forgotten} if self.identity.forgotten else {}),
            recipe=self.recipe.model_dump(mode="json"),
            task="multi-label" if prepared.table.several else "single-label",
        )
