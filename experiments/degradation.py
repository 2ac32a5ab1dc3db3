"""Degradation: plain and residual networks of 20 to 56 layers on CIFAR-10, and the gradients that explain them.

The experiment of He et al. 2015, section 4.2 and figure 6, reduced to what two cores can do: 16-pixel images, batches
of 32 and a twentieth of the steps. It therefore shows which of these networks is easier to train, not how accurate each
can become. The eight networks have the same stem, widths and head. A plain network has exactly as many parameters as
the residual network of its depth, because option A shortcuts have none.

    python experiments/degradation.py [--data DIR] [--work DIR] [--epochs 10] [--size 16] [--nets plain20,resnet20]

Runs that are complete in --work are not trained again, so several processes can share the work with --nets. The plots
are drawn once all runs are complete.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, SHARED, history, panels, seconds, trained, write
from torch import Tensor, nn

from linnaeus.data.sources import open_source
from linnaeus.models import create

DEPTHS = (20, 32, 44, 56)
KINDS = ("plain", "resnet")
COLORS = dict(zip(DEPTHS, ("#c9a227", "#2a9d8f", "#3a6ea5", "#b5342c"), strict=True))
BATCH = 32


def recipe(name: str, epochs: int, size: int) -> dict[str, Any]:
    """The paper's settings with a quarter of its batch size, half its learning rate, and one step at 75 %."""
    phase = {
        "epochs": epochs, "batch": BATCH, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "lr": 0.05,
        "schedule": {"name": "step", "every": max(1, epochs * 3 // 4), "factor": 0.1},
        "augment": {"pad_crop": size // 8, "hflip": 0.5},
    }  # fmt: skip
    # As in the paper's figure, the test error is plotted after every epoch. No epoch is selected by it.
    data = {"resize": size, "size": size, "normalize": "data", "valid": "test"}
    return {"name": name, "model": {"name": name}, "data": data, "phase": [phase]}


def draw_curves(runs: dict[str, Path], name: Path) -> None:
    """Training error (dashed) and test error (solid) by epoch, as in figure 6; plain networks left, residual right."""
    with panels(name, 9, 4, sharex=True, sharey=True) as (_, axes):
        for axis, kind in zip(axes[0], KINDS, strict=True):
            for depth in DEPTHS:
                past = history(runs[f"{kind}{depth}"])
                epochs = range(1, len(past["train_accuracy"]) + 1)
                axis.plot(epochs, [100 - 100 * a for a in past["train_accuracy"]], "--", lw=1, color=COLORS[depth])
                label = f"{kind}-{depth}"
                axis.plot(
                    epochs, [100 - 100 * a for a in past["valid_accuracy"]], lw=2, color=COLORS[depth], label=label
                )
            axis.set_xlabel("epoch")
            axis.legend(frameon=False)
            axis.set_title("without shortcuts" if kind == "plain" else "with shortcuts")
        axes[0, 0].set_ylabel("error, %   (solid: test, dashed: training)")


def without_batchnorm(network: nn.Module) -> None:
    """Replace the BatchNorms of a network by the identity."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def initialize_by(network: nn.Module, way: str) -> nn.Module:
    """Initialize the convolutions: `he` (He et al. 2015b), or with half (`small`) or twice (`large`) its variance."""
    gain = {"he": 1.0, "small": 0.5, "large": 2.0}[way]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            module.weight.data.mul_(gain**0.5)
    return network


CASES: dict[str, tuple[str, bool, str]] = {
    "plain, no BatchNorm, half the variance": ("plain56", False, "small"),
    "plain, no BatchNorm": ("plain56", False, "he"),
    "plain, no BatchNorm, twice the variance": ("plain56", False, "large"),
    "plain, BatchNorm": ("plain56", True, "he"),
    "shortcuts, no BatchNorm": ("resnet56", False, "he"),
    "shortcuts, BatchNorm": ("resnet56", True, "he"),
}
"""Name in the plot -> (network, whether it keeps its BatchNorms, initialization of its convolutions)."""


def gradient_norms(network: nn.Module, x: Tensor, labels: Tensor) -> list[float]:
    """Norm of the gradient of the loss with respect to each convolution, first to last, for one batch."""
    network.zero_grad()
    F.cross_entropy(network(x), labels).backward()
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    return [float(f"{w.grad.norm():.4g}") if w.grad is not None else 0.0 for w in weights]


def batches(data: Path, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless stream of batches of 64 training images, normalized and not augmented."""
    table = open_source(data)
    assert table.images is not None
    where = torch.from_numpy(table.where("train"))
    draw = torch.Generator().manual_seed(seed)
    while True:
        rows = where[torch.randperm(len(where), generator=draw)[:64]]
        x = torch.from_numpy(table.images[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        yield (x - 0.47) / 0.25, torch.from_numpy(table.labels[rows.numpy()])


def gradients(data: Path, steps: tuple[int, ...], seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Case -> number of SGD steps (learning rate 0.01) -> norm of each layer. Step 0 is before training."""
    found: dict[str, dict[str, list[float]]] = {}
    for case, (name, keeps, way) in CASES.items():
        torch.manual_seed(seed)
        network = initialize_by(create(name, classes=10), way).train()
        if not keeps:
            without_batchnorm(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        stream = batches(data, seed)
        norms: dict[str, list[float]] = {}
        for step in range(max(steps) + 1):
            x, labels = next(stream)
            now = gradient_norms(network, x, labels)
            if step in steps:
                norms[str(step)] = now
                print(f"{case}, step {step}: first {now[0]:.2e}, last {now[-1]:.2e}", flush=True)
            if not all(map(torch.isfinite, map(torch.tensor, now))):
                break  # the network has diverged
            optimizer.step()
        found[case] = norms
    return found


def draw_gradients(found: dict[str, dict[str, list[float]]], name: Path) -> None:
    """Gradient norm by depth on a logarithmic scale: before training (left) and after it (right)."""
    steps = sorted({int(s) for norms in found.values() for s in norms})
    styles = ("#b5342c:", "#b5342c-", "#b5342c--", "#3a6ea5-", "#c9a227-", "#2a9d8f-")
    with panels(name, 9, 4.4, sharex=True, sharey=True) as (figure, axes):
        for axis, step in zip(axes[0], (steps[0], steps[-1]), strict=True):
            for (case, norms), style in zip(found.items(), styles, strict=True):
                if str(step) in norms:
                    values = [max(v, 1e-12) for v in norms[str(step)]]
                    axis.semilogy(range(1, len(values) + 1), values, style[7:], color=style[:7], label=case)
            axis.set_xlabel("convolution, first to last")
            axis.set_title("before training" if step == 0 else f"after {step} steps")
        axes[0, 0].set_ylabel("norm of the gradient")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def table(rows: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table, as on the page."""
    lines = ["| network | training error, % | test error, % | core-seconds |", "|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['train']:.1f} | {row['test']:.1f} | {row['seconds']:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "cifar10-12k")
    parser.add_argument("--work", type=Path, default=Path("runs/degradation"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=16, help="image size in pixels; the paper uses 32")
    parser.add_argument("--nets", default=",".join(f"{kind}{depth}" for kind in KINDS for depth in DEPTHS))
    parser.add_argument("--steps", default="0,30", help="training steps at which gradients are measured")
    args = parser.parse_args()
    for net in args.nets.split(","):
        trained(args.data, recipe(net, args.epochs, args.size), args.work / net)
    runs = {f"{kind}{depth}": args.work / f"{kind}{depth}" for kind in KINDS for depth in DEPTHS}
    if any(not (run / "metrics.json").exists() for run in runs.values()):
        return
    found = gradients(args.data, tuple(int(s) for s in args.steps.split(",")))
    rows = {}
    for name, run in runs.items():
        past = history(run)
        errors = {kind: 100 - 100 * past[f"{kind}_accuracy"][-1] for kind in ("train", "valid")}
        rows[name] = {"train": errors["train"], "test": errors["valid"], "seconds": seconds(run)["cpu"]}
    draw_curves(runs, RESULTS / "degradation.png")
    draw_gradients(found, RESULTS / "gradients.png")
    write(
        "degradation", {"networks": rows, "gradients": found, "epochs": args.epochs, "batch": BATCH, "size": args.size}
    )
    print(table(rows))


if __name__ == "__main__":
    main()
