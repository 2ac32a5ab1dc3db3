"""The final evaluation of a run, as metrics.json and evaluation.json store it.

`metrics.json` is one object:

    valid, test     metrics of a split, from the saved model: n, correct, accuracy, accuracy_ci95, loss, top5 and more;
                    groups, if the images come in groups; most_frequent, the images of the most frequent class;
                    without_leaks, the metrics of the images that were not seen before, if others were
    calibration     the temperature, and the probability from which on the model answers
    unknown         thresholds above which an image is unknown, what they accept of each split, and how well images of
                    a class that is left out are recognized (share accepted and AUROC, by class in turn)
    source          path and kind of the data
    selected_on     the split that chose the best epoch
    sweep           the number of trials that were compared on the same images to select the recipe, if any were
    best            the metric that chose the best epoch, and its phase and number
    epochs          rows of history.csv
    interrupted     whether the run was stopped before its end
    bad_images      number of unreadable images, which were left out
    micro_batch     images that went through the network at once, by phase
    executors       the executors of the frozen part
    precision       the precision of the training, by phase
    seconds         durations of the parts of the run, and the total
    hardware, versions, fingerprint     of the machine, the software and the data

`evaluation.json` has for each split what `linnaeus evaluate --json` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.data.class_names import listed
from linnaeus.data.table import Table
from linnaeus.metrics.assessment import Assessment, CalibrationEffect, assess
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.classification import Figures, figures
from linnaeus.metrics.label_assessment import LabelAssessment
from linnaeus.metrics.multilabel import Headline
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import TARGET_RISK, is_unsure
from linnaeus.metrics.temperature import calibration_failure
from linnaeus.runs import predictions
from linnaeus.runs.penalties import Trial, held_out_text
from linnaeus.runs.predictions import PredictionRow
from linnaeus.stores.samples import Samples
from linnaeus.text import percent
from linnaeus.training.finish.rounding import decided_by_rounding
from linnaeus.training.finish.unknown import FittedDetector

FEWEST_MEASURING = 10  # with fewer images, the 95 % interval of an accuracy spans about 30 percentage points or more
NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})
Assessments = Mapping[str, Assessment] | Mapping[str, LabelAssessment]  # by split


def sample_names(table: Table, split: str, samples: dict[str, Samples]) -> list[str]:
    """The names of the readable samples of a split, in the order of its outputs."""
    return [table.sample_id(i) for i in samples[split].kept(table.where(split)).tolist()]


def split_dicts(assessments: Assessments, without_leaks: Mapping[str, Headline | None]) -> dict[str, Any]:
    """For metrics.json: the metrics of every split."""
    splits = {split: assessment.to_dict() for split, assessment in assessments.items()}
    for split, clean in without_leaks.items():
        splits[split]["without_leaks"] = None if clean is None else clean.to_dict()
    return splits


def held_out_figures(trials: Sequence[Trial], figures: Mapping[str, Figures]) -> dict[str, Any] | None:
    """The accuracy of a solved head on held-out training images, where it is more certain than that of any split.

    None otherwise. `trials` are those of its penalty.
    """
    chosen = next((trial for trial in trials if trial.ci95 is not None), None)
    if chosen is None or chosen.ci95 is None:
        return None
    width = min(high - low for low, high in (split.accuracy_ci95 for split in figures.values()))
    if chosen.ci95[1] - chosen.ci95[0] >= width:
        return None
    values = {"n": chosen.n, "accuracy": chosen.accuracy, "accuracy_ci95": list(chosen.ci95)}
    more = {"most_frequent": chosen.most_frequent, "groups": chosen.groups}
    return values | {key: count for key, count in more.items() if count is not None}


def published(
    figures: Mapping[str, Headline], without_leaks: Mapping[str, Headline | None], held_out: dict[str, Any] | None
) -> dict[str, Any]:
    """The figures by split for the model file, from which page and model card show them: without seen images."""
    unseen = {split: without_leaks.get(split, whole) for split, whole in figures.items()}
    more = {} if held_out is None else {"valid": {"held_out": held_out}}
    return {
        split: clean.to_dict() | ({"seen": n} if (n := figures[split].n - clean.n) else {}) | more.get(split, {})
        for split, clean in unseen.items()
        if clean is not None
    }


def long_dict(assessments: Assessments, table: Table) -> dict[str, Any]:
    """For evaluation.json: everything by split, in the format of `linnaeus evaluate --json`."""
    return {split: assessment.long_dict(table.classes, table.names) for split, assessment in assessments.items()}


def leak_lines(without_leaks: Mapping[str, Headline | None], unseen: np.ndarray | None) -> list[str]:
    """Lines for the terminal: the metrics without images that were seen before, and what these were not used for."""
    before = "images with a copy in an earlier split or seen by the initial weights"
    lines = [f"{split:9} {clean or 'no image is left'}, without {before}" for split, clean in without_leaks.items()]
    if unseen is not None:
        count = counted(int((~unseen).sum()), "such validation image")
        lines.append(f"excluded  {count} from model selection, calibration and thresholds")
    return lines


def kept(outputs: Outputs, unseen: np.ndarray | None) -> Outputs:
    """The validation outputs that choose a model and fit its calibration."""
    return outputs if unseen is None else outputs.take(unseen)


def certainty(effect: CalibrationEffect | LabelAssessment, place: str) -> str:
    """How far the probabilities are from the shares of right answers; where calibration brought them no closer, whether
    chance explains it. `place` names the images."""
    before, after = effect.before["ece"], effect.after["ece"]
    change = f"calibration error {percent(after)}, {percent(before)} before calibration ({place})"
    if after < before:
        return change
    # Where almost all answers are certain, the mean exceeds the 95th percentile.
    if after > (limit := max(effect.ece_by_chance)):
        return f"{change}; calibration did not help: read probabilities as a ranking, not as chances of being right"
    n = counted(effect.n, "image")
    return f"{change}; no sign of miscalibration: on {n}, chance alone explains up to {percent(limit)}"


def summary_split(assessments: Assessments) -> tuple[str, str]:
    """(the split that the summary for the terminal is about, its name in a sentence)."""
    return ("test", "test") if "test" in assessments else ("valid", "validation, cross-fitted")


def limits_of(split: str, support: np.ndarray, names: Sequence[str]) -> list[str]:
    """What figures on these images cannot tell, by the images of each class, (classes,)."""
    word, n = {"valid": "validation"}.get(split, split), int(support.sum())
    lines = []
    if n < FEWEST_MEASURING:
        lines.append(f"{counted(n, f'{word} image')}: too few for any of the figures below to mean much; add images")
    absent = [names[c] for c in np.flatnonzero(support == 0).tolist() if names]
    if absent:
        these = "these classes" if len(absent) > 1 else "this class"
        lines.append(f"no {word} image of {listed(absent)}: the figures below say nothing of {these}")
    return lines


class FinalEvaluation:
    """A calibration fitted on validation, and the metrics of every split with it."""

    def __init__(
        self,
        outputs: dict[str, Outputs],
        candidates: int,
        unseen: Mapping[str, np.ndarray] = NOTHING,
        target_risk: float = TARGET_RISK,
        fit_detector: Callable[[dict[str, Outputs], float], FittedDetector] | None = None,
    ):
        """`outputs`: of the saved model by split. Those of `valid` chose it from `candidates` epochs.

        `unseen`, (n,) bool by split, are the images that chose it, fit the calibration and measure it, where not all
        do. `target_risk` is the share of wrong answers that is allowed among the images that the model is sure of.
        `fit_detector` chooses, from the calibrated outputs by split and the temperature, what is unknown: such images
        choose no other threshold.
        """
        self.unseen = unseen.get("valid")
        fit = kept(outputs["valid"], self.unseen)
        self.calibration = Calibration.fit(fit, "valid", candidates, target_risk)
        self.calibrated = {split: out.at(self.calibration.temperature) for split, out in outputs.items()}
        self.fitted_detector = (
            None if fit_detector is None else fit_detector(self.calibrated, self.calibration.temperature)
        )
        self.limits = limits = None if self.fitted_detector is None else self.fitted_detector.thresholds
        if limits is not None:
            self.calibration = self.calibration.among_known(fit, limits)
        self.figures = {split: figures(out) for split, out in self.calibrated.items()}
        # Validation fitted the calibration, so its calibrated metrics are cross-fitted.
        self.assessments = {
            split: assess(out, self.calibration, cross_fitted=split == "valid", unseen=unseen.get(split), limits=limits)
            for split, out in outputs.items()
        }
        self.without_leaks: dict[str, Figures | None] = {}
        """Split -> metrics without the images that have a copy in an earlier split; None if no image is left. Only for
        splits with such images."""
        self.held_out: dict[str, Any] | None = None
        """The accuracy on held-out training images, where it is more certain than that on validation."""
        self.names: tuple[str, ...] = ()  # the display names of the classes, where they are known

    def prediction_rows(self, table: Table, samples: dict[str, Samples]) -> Iterator[PredictionRow]:
        """The rows of predictions.csv."""
        for split, outputs in self.calibrated.items():
            names = sample_names(table, split, samples)
            yield from predictions.prediction_rows(split, names, outputs, table.classes)

    def measure(self, split: str, rows: np.ndarray) -> Figures:
        """The headline metrics of some images of a split, (n,) bool."""
        return figures(self.calibrated[split].take(rows))

    def verdict(self, one: Outputs) -> str:
        """What the model answers instead of a class to the calibrated outputs of one image: `unknown`, `unsure` or
        empty."""
        if self.limits is not None and self.limits.unknown(one.distances, one.confidence)[0]:
            return "unknown"
        return "unsure" if is_unsure(float(one.confidence[0]), self.calibration.rule.threshold) else ""

    def difference(self, chosen: Headline, error: float) -> str:
        """A warning where the saved model is not as good as during training; empty otherwise.

        `error`: the relative error of the logits during training. More than that explains would be a mistake of ours.
        """
        assert isinstance(chosen, Figures)
        outputs = kept(self.calibrated["valid"], self.unseen)
        valid = figures(outputs)
        if abs(valid.correct - chosen.correct) <= decided_by_rounding(outputs, error):
            return ""
        return (
            f"the saved model has {valid.correct} of {valid.n} validation images correct, but had {chosen.correct} "
            "during training"
        )

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json: the splits, and the calibration without its curve."""
        calibration = {name: value for name, value in self.calibration.to_dict().items() if name != "curve"}
        splits = split_dicts(self.assessments, self.without_leaks)
        if self.held_out is not None:
            splits["valid"]["held_out"] = self.held_out
        unknown = {} if self.fitted_detector is None else {"unknown": self.fitted_detector.to_dict()}
        return splits | {"calibration": calibration} | unknown

    def lines(self) -> list[str]:
        """A short summary for the terminal."""
        # The split with the most reliable figures: test where there is one.
        split, place = summary_split(self.assessments)
        quality = self.assessments[split].calibration
        if split in self.without_leaks:
            counted_too = quality.n == self.assessments[split].metrics.n
            place += "; images that were seen before are counted" if counted_too else "; without images seen before"
        failure = calibration_failure(quality.temperature)
        return [
            *self._limits,
            *leak_lines(self.without_leaks, self.unseen),
            *([] if self.held_out is None else [f"held out  {held_out_text(self.held_out)}"]),
            f"certainty {certainty(quality, place)}",
            *([f"certainty {failure}"] if failure else []),
            *([] if self.fitted_detector is None else [f"unknown   {self.fitted_detector.line()}"]),
            f"unsure    {self.calibration.rule.brief}",
        ]

    @property
    def warnings(self) -> list[str]:
        """Those of `lines` that a user has to read before any figure."""
        notice = self.calibration.rule.notice
        return [*self._limits, *([f"unsure    {notice}"] if notice else [])]

    @property
    def _limits(self) -> list[str]:
        """What the figures cannot tell."""
        split = summary_split(self.assessments)[0]
        support = np.array([row.support for row in self.assessments[split].metrics.classes])
        return [f"limits    {line}" for line in limits_of(split, support, self.names)]
