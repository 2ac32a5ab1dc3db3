"""The tables of a recipe that describe its network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from linnaeus.recipe.strict import Strict


class Head(Strict):
    """Input of the head."""

    stages: Annotated[list[str], Field(min_length=1)] | None = None
    """Stages whose pooled outputs are concatenated as the input of the head, such as ["layer3", "layer4"]. Without it,
    the last stage alone."""
    windows: Annotated[int, Field(ge=1, le=16)] = 1
    """For images with several labels: the head sees this many windows per side of the last feature map, each of which
    shows one of the labels or none. 1: it sees the average of the whole map."""

    @model_validator(mode="after")
    def _one_kind(self) -> Head:
        if self.stages is not None and self.windows > 1:
            raise ValueError(f"windows = {self.windows} uses the last stage alone; leave stages out")
        return self


class Model(Strict):
    """The network and its initial weights."""

    name: str
    """A network listed by `linnaeus models`, or `file.py:function` for a custom network."""
    weights: str = "none"
    """`imagenet`, the name of published weights, a file, or `none` for training from scratch."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network, such as `stem = "small"`; `linnaeus models NAME` lists them."""
    frozen: Literal["float", "bf16", "int8"] = "float"
    """Arithmetic of frozen stages. bf16 (where it is faster than float on this machine) and int8 round, and are faster
    on some CPUs; the saved model is float."""
    head: Head | None = None
    """Input of the head, unless it is the average of the last stage: `head = { stages = ["layer3", "layer4"] }`."""
