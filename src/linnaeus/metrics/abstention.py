"""The abstention rule of a model: the thresholds below which it is unsure, what they do, and how to say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.risk_test import CONFIDENCE, adjusted, required_samples
from linnaeus.text import percent, percent_range

NO_ANSWER = 2.0
"""The threshold of a model that answers no image: above every probability, and a number that JSON can hold."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and its effect on a set of images."""

    threshold: float
    answered: int
    wrong: int


@dataclass(frozen=True)
class AbstentionRule:
    """The thresholds for one target risk; None where no threshold qualifies."""

    target_risk: float  # the largest acceptable share of errors among the answers, in 0..1
    n: int  # number of images on which the thresholds were chosen: those that the model does not call unknown
    estimated: OperatingPoint | None
    tested: OperatingPoint | None
    grouped: bool = False  # whether these images came in groups, for which there is no test
    # Number of models from which these images chose this one; None: unknown, as in files of earlier versions.
    candidates: int | None = 1
    # Passes the test without the correction for several candidates; None where a threshold passes with it.
    uncorrected: OperatingPoint | None = None
    unknown: int = 0  # number of images beside the n that the model calls unknown, and so does not answer

    @property
    def applied(self) -> OperatingPoint | None:
        """The threshold in use: the tested one, else the one tested without correction, else the estimated one."""
        return self.tested or self.uncorrected or self.estimated

    @property
    def threshold(self) -> float:
        """The model abstains below this probability; NO_ANSWER where no threshold qualifies."""
        return NO_ANSWER if self.applied is None else self.applied.threshold

    @property
    def answers(self) -> str:
        """Which images the model answers: `all`, `some` or `none`."""
        if self.applied is None:
            return "none"
        return "some" if self.applied.threshold > 0 else "all"

    @property
    def notice(self) -> str:
        """What to say first of a model that answers no image; empty for the others."""
        if self.applied is not None:
            return ""
        share = percent(self.target_risk, 0, exact=True)
        more = min(5 * self.target_risk, (1 + self.target_risk) / 2)
        return (
            f"no threshold is expected to keep wrong answers to {share} or fewer, so this model "
            f'answers "unsure" to every image; train with more images, or allow more errors (--set error={more:g})'
        )

    @property
    def total(self) -> int:
        """Number of images, with the unknown ones."""
        return self.n + self.unknown

    @property
    def brief(self) -> str:
        """The rule in a short line for the terminal; `str(self)` has the reasons and the interval."""
        point, share = self.applied, percent(self.target_risk, 0, exact=True)
        if point is None:
            return self.notice
        if point.threshold == 0:
            text = f"never: {point.wrong} of {self.n} {'answers' if self.unknown else 'images'} are wrong"
        else:
            text = f"below {percent(point.threshold, exact=True)}: {point.answered} of {self.total} answered, "
            text += f"{point.wrong} wrong"
        tested = "tested" if self.tested is not None else f"not tested, because {self.why_not_tested}"
        return f"{text} ({share} are allowed; {tested})"

    def __str__(self) -> str:
        point, share = self.applied, percent(self.target_risk, 0, exact=True)
        if point is None:
            return f"always: by {self.n} answers, no threshold is expected to keep wrong ones to {share} or fewer"
        if point.threshold == 0:
            text = f"never: {point.wrong} of {self.n} answers are wrong, and {share} are allowed; "
        else:
            aim = (
                "so that at most {} of the answers are wrong" if self.tested else "aiming for at most {} wrong answers"
            )
            text = f"below {percent(point.threshold, exact=True)}, {aim.format(share)}: "
            share_answered = percent(point.answered / self.total)
            text += f"{point.answered} of {self.total} answered ({share_answered}), {point.wrong} wrong; "
        if self.unknown:
            text += f"{self.unknown} of the {self.total} images get no answer because they are called unknown; "
        if self.tested is not None:
            chosen = "" if self.candidates == 1 else f", although they also chose the best of {self.candidates} epochs"
            share = percent(1 - CONFIDENCE, 0)
            return f"{text}tested: a model with more errors would pass this test in at most {share} of samples{chosen}"
        text = f"{text}only an estimate: {self.why_not_tested}"
        if self.grouped:  # the interval of independent images would be too narrow
            return text
        interval = percent_range(wilson(point.wrong, point.answered))
        return f"{text}; the 95 % interval of the share of wrong answers is {interval}"

    @property
    def why_not_tested(self) -> str:
        """Why no threshold passed the test, in words."""
        if self.grouped:
            return "the images come in groups, whose errors are correlated"
        if self.candidates is None:
            return "the number of epochs from which these images selected the model is not recorded"
        required = self.required
        if self.n < required:
            chosen = "" if self.candidates == 1 else f" after choosing the best of {self.candidates} epochs on them"
            images = "images that are not called unknown" if self.unknown else "images"
            return f"at least {required} {images} are needed{chosen}"
        return "no threshold passes the test"

    @property
    def required(self) -> int:
        """The smallest number of images that could pass the test."""
        return required_samples(self.target_risk, adjusted(CONFIDENCE, self.candidates))

    def to_dict(self) -> dict[str, Any]:
        """The rule for JSON and for the model file."""
        return {
            "target_risk": self.target_risk,
            "confidence": CONFIDENCE,
            "n": self.n,
            "unknown": self.unknown,
            "smallest_n": self.required,
            "grouped": self.grouped,
            "candidates": self.candidates,
            "estimated": None if self.estimated is None else asdict(self.estimated),
            "uncorrected": None if self.uncorrected is None else asdict(self.uncorrected),
            "tested": None if self.tested is None else asdict(self.tested),
            "threshold": None if self.applied is None else self.threshold,
            "answers": self.answers,
        }
