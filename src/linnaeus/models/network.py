"""The interface that all networks share: named stages in order, and how to run from one of them to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.windows import WindowClassifier, cut_windows

StageFunction = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A network as a sequence of named stages, such as `stem`, `layer1` … `layer4`, `head`.

    With stages, a network can be cut: the part below the cut is frozen, computed once and stored. Each stage is a
    callable attribute of the network, either a submodule or a method that runs several submodules. Stages do not wrap
    the modules, because the modules keep the parameter names of torchvision, whose weights then load unconverted.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]]
    """Stage -> names of the submodules that belong to it, in the order in which they run."""

    arch: dict[str, Any]
    """`name`, `classes`, `channels` and `arguments`, from which `create` makes the same network. JSON types only."""

    head_input: int
    """Number of features that enter the last linear layer."""

    head_stages: tuple[str, ...] = ()
    """Stages whose pooled outputs are concatenated for the head. Empty: the output of the last stage alone."""

    windows: int = 1
    """Windows a side of the last feature map that the head looks at; 1: their average, see `models/windows.py`."""

    map_axes: tuple[int, int] = (2, 3)
    """The dimensions of height and width of a feature map."""

    license: str = ""
    """License of the weights that training started from, such as `apache-2.0`; empty if unknown or without weights."""

    frozen: tuple[str, ...] = ()
    """Stages that cannot be trained."""

    usual_size: int = 224
    """Side in pixels of the square images that the network was designed for. Others work too."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages in order, ending with the head."""
        return tuple(self.parts)

    def forward(self, x: Tensor) -> Any:
        """Images (N, channels, H, W) -> logits (N, classes)."""
        return self.run(x)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (inclusive) to `stop` (exclusive); by default all of them.

        `run(run(x, stop=cut), start=cut)` equals `run(x)`. The head takes the output of the last stage, (N, C, H, W),
        before or after `head_features`, which pools it to (N, C).

        With `head_stages`, the head takes their pooled outputs, concatenated to (N, sum of C). A run can then start at
        the head itself, or no higher than right above the lowest of these stages: otherwise their outputs are missing,
        which raises an AssertionError.
        """
        return self._run(x, start, stop, {})

    def _run(self, x: Tensor, start: str | None, stop: str | None, replacements: Mapping[str, StageFunction]) -> Tensor:
        """`run`, with other functions in place of some stages."""
        stages = self.between(start, stop)
        assert start in self.starts, (
            f"a run from {start} does not see all stages that the head uses: {self.head_stages}"
        )
        # A run that starts right above one of `head_stages` gets the output of that stage as its input.
        previous = None if start in (None, "head") else self.stages[self.stages.index(start) - 1]
        features = [pooled(x)] if previous in self.head_stages else []
        for stage in stages:
            if stage == "head" and features:
                x = torch.cat(features, 1)
            x = replacements.get(stage, self.function_of(stage))(x)
            if stage in self.head_stages:
                features.append(pooled(x))
        return torch.cat(features, 1) if features and stop == "head" else x

    def function_of(self, stage: str) -> StageFunction:
        """The function that computes a stage."""
        return getattr(self, stage)

    def stage_outputs(self, x: Tensor, stages: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs of `stages` for images (N, C, H, W), and the logits (N, classes), in one graph for gradients.

        The graph starts at the lowest of `stages`: the stages below run without one, and the gradients, hooks and
        `requires_grad` flags of the parameters stay untouched. All paths from a stage to the logits are in the graph,
        including the direct one of `head_stages`. The network has to be in evaluation mode.
        """
        outputs: dict[str, Tensor] = {}
        gradients = torch.is_grad_enabled()

        def observed(stage: str) -> StageFunction:
            def run(x: Tensor) -> Tensor:
                with torch.set_grad_enabled(gradients and bool(outputs)):
                    x = self.function_of(stage)(x)
                if stage in stages:
                    outputs[stage] = x = x if x.requires_grad else x.detach().requires_grad_()
                return x.clone() if stage in stages else x  # the next stage may modify its input in place

            return run

        logits = self._run(x, None, None, {stage: observed(stage) for stage in self.stages})
        return outputs, logits

    def pool(self, x: Tensor) -> Tensor:
        """The output of the last stage below the head -> features (N, F)."""
        return pooled(x)

    def head_features(self, x: Tensor) -> Tensor:
        """The input of the linear layer: features (N, F), or with `windows` (N, windows, F), which pass unchanged."""
        if self.windows == 1:
            return self.pool(x)
        if x.dim() == 3:
            return x
        return torch.stack([self.pool(window) for window in cut_windows(x, self.windows, self.map_axes)], 1)

    def features(self, x: Tensor) -> Tensor:
        """The input of the head, before or after `head_features` -> one vector for each image, (N, F)."""
        x = self.head_features(x)
        return x.flatten(1) if self.windows == 1 else x.mean(1)

    def as_map(self, stage: str, x: Tensor) -> Tensor | None:
        """The output of a stage as feature maps (N, C, H, W); None if its positions are not places in the image."""
        return x if x.dim() == 4 else None

    def size_note(self, size: int) -> str:
        """What happens in the network to images of `size` pixels a side that its weights do not expect; often empty."""
        return ""

    @property
    def has_features(self) -> bool:
        """Whether there is a stage below the head: a module of one piece cannot be cut."""
        return len(self.stages) > 1

    def pooled_features(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) -> what the head sees, pooled, (N, F)."""
        return self.features(self.run(x, stop=self.stages[-1]))

    def features_and_logits(self, x: Tensor, start: str | None = None) -> tuple[Tensor, Tensor]:
        """`pooled_features` and the logits (N, classes), with a single pass through the stages from `start` on."""
        head = self.stages[-1]
        below = self.run(x, start, stop=head)
        return self.features(below), self.run(below, start=head)

    @property
    def starts(self) -> tuple[str | None, ...]:
        """Where a run may start: up to right above the lowest stage in `head_stages`, and at the head itself."""
        if not self.head_stages:
            return (None, *self.stages)
        return (None, *self.stages[: self.stages.index(self.head_stages[0]) + 2], "head")

    def set_head_stages(self, stages: Sequence[str], features: int) -> None:
        """Replace the head by a new one on the pooled outputs of `stages`, which have `features` channels in total.

        Lower stages help with images unlike ImageNet, whose classes shaped the features of the last stage.
        """
        self.head_stages, self.head_input = tuple(stages), features
        self.fc = classifier(features, self.arch["classes"])
        self.arch["arguments"]["head_stages"] = list(stages)

    def set_windows(self, count: int) -> None:
        """Replace the head by a new one on windows of the last feature map, `count` a side."""
        self.windows = count
        self.fc = classifier(self.head_input, self.arch["classes"], WindowClassifier)
        self.arch["arguments"]["head_windows"] = count

    def between(self, start: str | None = None, stop: str | None = None) -> tuple[str, ...]:
        """The names of the stages from `start` (inclusive) to `stop` (exclusive). UserError for an unknown name."""
        for stage in (start, stop):
            if stage is not None and stage not in self.stages:
                raise UserError(f"{self.arch['name']} has no stage {stage!r}: choose from {', '.join(self.stages)}")
        first = 0 if start is None else self.stages.index(start)
        last = len(self.stages) if stop is None else self.stages.index(stop)
        return self.stages[first:last]

    def stage_of(self, name: str) -> str:
        """The stage of a parameter, buffer or submodule: 'layer1.0.bn1.weight' -> 'layer1'. KeyError if it has none."""
        child = name.split(".", 1)[0]
        for stage, children in self.parts.items():
            if child in children:
                return stage
        raise KeyError(f"{name} belongs to no stage of {self.arch['name']}")


def pooled(x: Tensor) -> Tensor:
    """Global average pooling: (N, C, H, W) -> (N, C). Features that are already pooled, (N, C), pass unchanged."""
    return x.mean((2, 3)) if x.dim() == 4 else x


def resampling(before: int, after: int) -> str:
    """A line on position embeddings that are resampled from one square grid of patches to another; empty if not."""
    if before == after:
        return ""
    return f"position embeddings resampled from {before} x {before} to {after} x {after} patches"


def initialize(network: nn.Module) -> None:
    """Initialize all convolutions and hidden linear layers as in He et al. 2015, arXiv:1502.01852, equation 10.

    A ReLU sets half of its inputs to zero and so halves their mean square. Weights with variance 2 / fan make up for
    it, and the signal keeps its size at any depth. BatchNorms keep PyTorch's initial scale 1 and shift 0. Layers on the
    meta device have no values to draw: torch would import its compiler for it, which takes a second.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.is_meta:
            continue
        if isinstance(module, nn.Conv2d):
            # Fan out, as in torchvision: it preserves the size of the gradients in the backward pass.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def classifier(features: int, classes: int, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """The last linear layer, (N, features) -> (N, classes). It gives logits; the softmax is part of the loss.

    Small initial weights (standard deviation 0.01; Goyal et al. 2017, arXiv:1706.02677, section 5.1) give all classes
    nearly the same probability, so the loss starts at ln(classes).
    """
    linear = kind(features, classes)
    if not linear.weight.is_meta:
        nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def check_choice(network: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a UserError if an argument's value is none of `choices`."""
    if value not in choices:
        raise UserError(f"{network}: {argument} = {value!r} is unknown: choose from {', '.join(choices)}")


def allocate(network: Network, device: torch.device) -> Network:
    """Give the tensors of a network on the meta device memory, which is not set.

    `to_empty` does the same, but imports sympy and parts of torch's compiler first (0.3 s).
    """
    return network._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
