"""Saliency maps: Grad-CAM at any stage, and occlusion and integrated gradients through captum.

A map shows where an image supports a class, on its own scale from 0 to 1, the strongest place. It does not show how
strong the support is, so the colors of two maps cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.data.class_names import class_name, listed
from linnaeus.errors import UserError, did_you_mean, install
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.models import Network
from linnaeus.models.receptive_field import receptive_field_centers, upsample

FINE = 4  # positions a side from which on a map tells places apart
AT_ONCE = 8  # images explained together
BATCH = 32  # changed images through the network at once
STEPS = 32  # of the integral
WINDOWS = 7  # patches a side of the image, which are moved by half of their size
OUTLIERS = 0.005  # share of the pixels that may be over the top of a map of single pixels

Maps = dict[str, np.ndarray]  # stage, or method -> (N, H, W) float32 in 0..1, of the size that the network saw


@dataclass(frozen=True, eq=False)
class Explanation:
    """Saliency maps of one image for one class."""

    prediction: Prediction
    target: int  # the class that is explained: the predicted one, or another
    # Stage, or method -> (size, size) float32 in 0..1. All 0 where nothing speaks for the class.
    maps: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.prediction.names[self.target]

    @property
    def probability(self) -> float:
        """Predicted probability of the explained class."""
        assert self.prediction.probabilities is not None
        return float(self.prediction.probabilities[self.target])

    @property
    def empty(self) -> bool:
        """Whether nothing in the image speaks for the class, as far as the maps can show it."""
        return not any(heat.any() for heat in self.maps.values())


def explain(
    classifier: Classifier,
    predictions: Sequence[Prediction],
    *,
    target: int | Sequence[int] | None = None,
    method: str = "gradcam",
    stages: Sequence[str] = (),
) -> list[Explanation]:
    """Explain what `classifier` predicted for images that it could read, or where it sees the class `target`.

    `target` may be a class for each of `predictions`, among which an image may occur several times.

    `stages` are those of `choose_stages`, for Grad-CAM only. Raises UserError if captum is needed and not there.
    """
    network = classifier.network
    if method == "gradcam" and not stages:
        stages = choose_stages(network, classifier.preprocessing.size)
    explained = []
    # A few at a time, because gradients need the activations of all stages.
    for start in range(0, len(predictions), AT_ONCE):
        batch = predictions[start : start + AT_ONCE]
        images = [p.image for p in batch if p.image is not None]
        assert len(images) == len(batch), "an image that cannot be read has nothing to explain"
        x = classifier.preprocessing.normalize(torch.from_numpy(np.stack(images)).to(classifier.device))
        chosen = target[start : start + AT_ONCE] if isinstance(target, Sequence) else [target] * len(batch)
        targets = np.array([p.index if t is None else t for p, t in zip(batch, chosen, strict=True)])
        if method == "gradcam":
            maps = grad_cam(network, x, targets, stages)
        else:
            maps = {method: CAPTUM[method](network, x, targets)}
        for i, p in enumerate(batch):
            explained.append(Explanation(p, int(targets[i]), {name: values[i] for name, values in maps.items()}))
    return explained


def grad_cam(network: Network, x: Tensor, targets: np.ndarray, stages: Sequence[str]) -> Maps:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, section 3, eq. 1 and 2) at `stages` of a network.

    x (N, C, H, W), normalized, on the network's device; targets (N,) classes -> a map for each stage. A channel counts
    by the mean slope of the class's logit along it; what the sum of channels has above zero is the map. It is stretched
    over the image with every position at the pixel that it looks at (`models.receptive_field`), where an even stretch
    would put the map of a ResNet's last stage 16 of 224 pixels too far to the lower right.

    The network, in evaluation mode, stays as it is: nothing is hooked, and no parameter gets a gradient.
    """
    assert not network.training, "a heat map explains predictions: put the network into evaluation mode"
    with torch.inference_mode(False), torch.enable_grad():
        outputs, logits = network.stage_outputs(x.clone(), stages)
        score = logits[torch.arange(len(x)), torch.from_numpy(targets)].sum()  # images do not touch each other
        slopes = torch.autograd.grad(score, [outputs[stage] for stage in stages])
    height, width = x.shape[2:]
    # Positions of a map are placed where their receptive fields lie, not by stretching the map.
    where = receptive_field_centers(network, height, width)
    maps = {}
    for stage, slope in zip(stages, slopes, strict=True):
        slope_map, activation = (network.as_map(stage, y.detach()) for y in (slope, outputs[stage]))
        assert slope_map is not None
        assert activation is not None
        # Channel weights are the mean slopes; the ReLU keeps what speaks for the class.
        weighted = (slope_map.mean((2, 3), keepdim=True) * activation).sum(1).relu()
        maps[stage] = _to_one(upsample(weighted.float(), where, height, width))
    return maps


def choose_stages(network: Network, size: int, stage: str | None = None) -> tuple[str, ...]:
    """The stages to draw for images of `size` pixels: `stage`, every one that has a map ("all"), or the usual one.

    The usual one is the last whose map is at least 4 x 4: higher up a network knows more of what, and less of where.
    Raises UserError if there is no such stage, naming those there are.
    """
    sizes = map_sizes(network, size)
    if not sizes:
        custom = network.arch["name"] == "custom"
        parts = ", or give the network as an nn.Sequential, whose parts are its stages" if custom else ""
        raise UserError(
            f"{network.arch['name']}: no stage gives a map that Grad-CAM could draw; use --method occlusion{parts}"
        )
    if stage == "all":
        return tuple(sizes)
    if stage is None:
        fine = [name for name, (height, width) in sizes.items() if min(height, width) >= FINE]
        return (fine[-1] if fine else next(iter(sizes)),)
    if stage not in network.stages:
        raise UserError(
            f"--stage {stage}: no such stage{did_you_mean(stage, sizes)}; choose from {listed([*sizes], 20)}"
        )
    if stage not in sizes:
        raise UserError(f"--stage {stage}: gives no map at {size} pixels; choose from {listed([*sizes], 20)}")
    return (stage,)


def map_sizes(network: Network, size: int) -> dict[str, tuple[int, int]]:
    """Stage -> height and width of its map for images of `size` pixels, where that is more than one position."""
    sizes = receptive_field_centers(network, size, size).sizes
    return {stage: (height, width) for stage, (height, width) in sizes.items() if height * width > 1}


def find_class(classifier: Classifier, name: str) -> int:
    """The index of a class, by its name or by the name it is shown with. Raises UserError if there is none."""
    wanted = class_name(name)
    if wanted in classifier.classes:
        return classifier.classes.index(wanted)
    shown = [i for i, display_name in enumerate(classifier.names) if display_name == wanted]
    if len(shown) == 1:
        return shown[0]
    if shown:
        same = listed([classifier.classes[i] for i in shown])
        raise UserError(f"--class {name}: {len(shown)} classes have this display name; give one of {same}")
    known = {*classifier.classes, *classifier.names}
    raise UserError(
        f"--class {name}: the model does not know it{did_you_mean(wanted, known)}; it knows {listed(classifier.names)}"
    )


def occlusion(network: Network, x: Tensor, targets: np.ndarray) -> np.ndarray:
    """How much less likely the class becomes when a patch of the image is covered (Zeiler and Fergus 2014,
    arXiv:1311.2901, section 4.2).

    x (N, C, H, W), targets (N,) -> (N, H, W) float32 in 0..1. The patch is a seventh of the image's side, has the
    mean color, and moves by half of its size: some 170 answers an image. Likelihood is taken as its logarithm, in
    which a drop from 0.999 can be seen too. Where covering helps the class the map is 0.
    """
    window = max(1, round(x.shape[-1] / WINDOWS))
    # Windows overlap by half, so that a part at the edge of one is in the middle of another.
    shape, strides = (x.shape[1], window, window), (x.shape[1], max(1, window // 2), max(1, window // 2))

    def score(x: Tensor) -> Tensor:
        return F.log_softmax(network(x), 1)

    require_captum()
    from captum.attr import Occlusion

    drops = Occlusion(score).attribute(
        x,
        shape,
        strides=strides,
        # 0 is the mean color after normalization.
        baselines=0,
        target=torch.from_numpy(targets).to(x.device),
        perturbations_per_eval=max(1, BATCH // len(x)),
    )
    return _to_one(drops.mean(1).relu())


def integrated_gradients(network: Network, x: Tensor, targets: np.ndarray) -> np.ndarray:
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) of the class's logit, from the mean color.

    x (N, C, H, W), targets (N,) -> (N, H, W) float32 in 0..1. Single pixels are noise to the eye: channels are added,
    small squares averaged, and the largest 0.5 % of the pixels share the value 1.
    """
    gradients = integrate(network, x, targets).sum(1, keepdim=True)
    square = 2 * (x.shape[-1] // 56) + 1
    for _ in range(2):  # twice a square is nearly round
        gradients = F.avg_pool2d(gradients, square, 1, square // 2, count_include_pad=False)
    return _to_one(gradients[:, 0].relu(), OUTLIERS)


def integrate(network: Network, x: Tensor, targets: np.ndarray) -> Tensor:
    """The integrated gradients themselves, as x: they add up to what the logit gained over that of the mean color."""
    require_captum()
    from captum.attr import IntegratedGradients

    # Captum needs gradients, which inference mode forbids.
    with torch.inference_mode(False):
        gradients = IntegratedGradients(network).attribute(
            x.clone(),
            baselines=0,
            target=torch.from_numpy(targets).to(x.device),
            n_steps=STEPS,
            internal_batch_size=max(BATCH, len(x)),
        )
        return gradients.detach()


CAPTUM: dict[str, Callable[[Network, Tensor, np.ndarray], np.ndarray]] = {
    "occlusion": occlusion,
    "integrated-gradients": integrated_gradients,
}
METHODS = ("gradcam", *CAPTUM)


def require_captum() -> None:
    """Raise UserError if captum, which all but Grad-CAM need, is not installed."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        raise UserError(
            f"occlusion and integrated gradients need captum: {install('explain')}; or use --method gradcam"
        ) from None


def _to_one(maps: Tensor, outliers: float = 0.0) -> np.ndarray:
    """(N, H, W), 0 or more -> float32 numpy of the same shape in 0..1; the top is all but a share of `outliers`."""
    flat = maps.float().cpu().flatten(1)
    top = flat.kthvalue(max(1, round((1 - outliers) * flat.shape[1])), dim=1).values
    return (flat / top.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).clamp(0, 1).view_as(maps).numpy()
