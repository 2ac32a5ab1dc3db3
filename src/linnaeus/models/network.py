"""What every network here has in common: named stages in order, and how to run from one to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linnaeus.errors import UserError


class Network(nn.Module):
    """A network as a row of named stages, each a callable attribute: a submodule, or a method over several of them.

    Stages exist so that a frozen part can be computed once and stored. They are laid over the modules, not around them,
    because the modules keep torchvision's names and published weights then load unconverted.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]]
    """Stage -> names of the submodules that belong to it, in the order in which they run."""

    arch: dict[str, Any]
    """`create(name, classes, channels, **arguments)` of these four makes the same network. Plain data, fit for JSON."""

    head_input: int
    """Features that enter the last linear layer: the length of a pooled vector."""

    head_stages: tuple[str, ...] = ()
    """Stages whose pooled outputs the head sees, one after the other; empty: the output of the last stage alone."""

    usual_size: int = 224
    """Pixels of the square images that the network was designed for; others work too."""

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def forward(self, x: Tensor) -> Any:
        return self.run(x)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (inclusive) to `stop` (exclusive); by default all of them.

        `run(run(x, stop=cut), start=cut)` equals `run(x)`. A run that starts at the head takes what the last stage
        gives, (N, C, H, W), or what is left of it after global average pooling, (N, C). With `head_stages` it takes
        their pooled outputs side by side, (N, sum of C), and a run that starts higher than right after the first of
        them is an AssertionError: what lies below is gone.
        """
        return self._run(x, start, stop, {})

    def _run(
        self, x: Tensor, start: str | None, stop: str | None, instead: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """`run`, with other functions in place of some stages."""
        stages = self.between(start, stop)
        assert start in self.starts, f"the head looks at {self.head_stages}, and a run from {start} would not see all"
        before = None if start in (None, "head") else self.stages[self.stages.index(start) - 1]
        seen = [pooled(x)] if before in self.head_stages else []
        for stage in stages:
            if stage == "head" and seen:
                x = torch.cat(seen, 1)
            x = instead.get(stage, self.function_of(stage))(x)
            if stage in self.head_stages:
                seen.append(pooled(x))
        return torch.cat(seen, 1) if seen and stop == "head" else x

    def function_of(self, stage: str) -> Callable[[Tensor], Tensor]:
        """What runs a stage."""
        return getattr(self, stage)

    def look(self, x: Tensor, stages: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """What `stages` give for images (N, C, H, W), and the logits (N, classes), in one graph for gradients.

        The graph begins at the lowest of `stages`: what lies below runs without one, and no gradient, hook or flag of a
        parameter is touched. Every way from a stage to the logits is in it, the head's own look at that stage too.
        For a network in evaluation mode.
        """
        seen: dict[str, Tensor] = {}
        wanted = torch.is_grad_enabled()

        def watched(stage: str) -> Callable[[Tensor], Tensor]:
            def run(x: Tensor) -> Tensor:
                with torch.set_grad_enabled(wanted and bool(seen)):
                    x = self.function_of(stage)(x)
                if stage in stages:
                    seen[stage] = x = x if x.requires_grad else x.detach().requires_grad_()
                return x.clone() if stage in stages else x  # what follows may work in place

            return run

        logits = self._run(x, None, None, {stage: watched(stage) for stage in self.stages})
        return seen, logits

    @property
    def starts(self) -> tuple[str | None, ...]:
        """Where a run may start: up to right after the lowest stage that the head looks at, and at the head itself."""
        if not self.head_stages:
            return (None, *self.stages)
        return (None, *self.stages[: self.stages.index(self.head_stages[0]) + 2], "head")

    def look_at(self, stages: Sequence[str], features: int) -> None:
        """Make a new head on the pooled outputs of `stages`, `features` channels together.

        What tells classes apart may lie lower than the last stage, which was shaped by ImageNet's classes.
        """
        self.head_stages, self.head_input = tuple(stages), features
        self.fc = classifier(features, self.arch["classes"])
        self.arch["arguments"]["head_stages"] = list(stages)

    def between(self, start: str | None = None, stop: str | None = None) -> tuple[str, ...]:
        """The names of the stages from `start` (inclusive) to `stop` (exclusive)."""
        for stage in (start, stop):
            if stage is not None and stage not in self.stages:
                raise UserError(f"{self.arch['name']} has no stage {stage!r}: choose from {', '.join(self.stages)}")
        first = 0 if start is None else self.stages.index(start)
        last = len(self.stages) if stop is None else self.stages.index(stop)
        return self.stages[first:last]

    def stage_of(self, name: str) -> str:
        """The stage that a parameter, buffer or submodule belongs to: 'layer1.0.bn1.weight' -> 'layer1'."""
        child = name.split(".", 1)[0]
        for stage, children in self.parts.items():
            if child in children:
                return stage
        raise KeyError(f"{name} belongs to no stage of {self.arch['name']}")

    def modules_of(self, stage: str) -> list[nn.Module]:
        """The submodules of a stage: what to put in eval mode when it is frozen. Optional ones may be absent."""
        return [self.get_submodule(child) for child in self.parts[stage] if hasattr(self, child)]


def pooled(x: Tensor) -> Tensor:
    """Global average pooling, (N, C, H, W) -> (N, C). A vector (N, C) passes through, so a store may keep either."""
    return x.mean((2, 3)) if x.dim() == 4 else x


def initialize(network: nn.Module) -> None:
    """He initialization (He et al. 2015, arXiv:1502.01852, eq. 10) of every convolution and hidden linear layer.

    A ReLU halves the variance of what passes; weights of variance 2 / fan keep it constant through any depth.
    BatchNorms keep torch's start: scale 1, shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Backward form (fan out), as torchvision has it: gradients keep their size on the way down.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def classifier(features: int, classes: int) -> nn.Linear:
    """The last linear layer, (N, features) -> (N, classes): logits, never a softmax.

    Small weights (std 0.01; Goyal et al. 2017, arXiv:1706.02677, section 5.1) give every class nearly the same
    probability at first, so that the loss starts at ln(classes).
    """
    linear = nn.Linear(features, classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def check_choice(network: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse an argument's value that is none of `choices`, naming all three."""
    if value not in choices:
        raise UserError(f"{network}: {argument} = {value!r} is unknown: choose from {', '.join(choices)}")
