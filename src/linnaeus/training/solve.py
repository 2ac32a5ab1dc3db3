"""head = "auto": solve the linear head on stored features instead of training it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from linnaeus.console import Console
from linnaeus.data.batches import Batches
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.metrics.classification import Figures, figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.models import Network
from linnaeus.models.linear_probe import LinearProbe, fit_linear_probe
from linnaeus.text import percent
from linnaeus.training.loop import Epoch, validate
from linnaeus.training.loss import balanced_weights
from linnaeus.training.phase import PhaseRun

BATCH = 512
"""Images whose features are read at once."""


@dataclass(frozen=True)
class SolvedHead:
    """A linear head and its metrics on the training features."""

    head: LinearProbe
    train: Figures


def solve_head(run: PhaseRun, groups: np.ndarray | None, engine: Engine, console: Console) -> Epoch:
    """Put the best linear head into the network; the phase is over after this single epoch.

    `groups`: (n,) groups of the training images, which cross-validation keeps together. Raises UserError if the head is
    not one linear layer.
    """
    started = time.perf_counter()
    linear = _linear_head(run.net.model)
    # Solved on rank 0 only: two machines might differ in the last bits.
    solved = engine.broadcast(lambda: _solve(run, groups, engine, console))
    with torch.no_grad():
        linear.weight.copy_(solved.head.weight)
        linear.bias.copy_(solved.head.bias)
    valid = validate(run.net, run.valid, engine)
    seconds = time.perf_counter() - started
    return Epoch(1, 0.0, solved.train.loss, solved.train.accuracy, valid, seconds, run.net.model)


def _solve(run: PhaseRun, groups: np.ndarray | None, engine: Engine, console: Console) -> SolvedHead:
    """Solve the head on the features of all views of the training images."""
    stored, views = run.train.batches, run.train.batches.views
    batches = Batches(stored.rows, stored.labels, batch=BATCH, views=views, device=engine.device)
    features = torch.cat([run.train.prepare(batch, view) for view in range(views) for batch in batches.epoch(view)])
    labels = np.tile(batches.labels, views)  # the features of all views follow each other
    weights = balanced_weights(labels, run.classes) if run.phase.class_weights == "balanced" else None
    head = fit_linear_probe(features, labels, run.classes, weights=weights, views=views, seed=run.seed, groups=groups)
    train = figures(Outputs(labels, (features @ head.weight.T + head.bias).cpu().numpy()))
    accuracy = (head.probabilities.argmax(1) == labels).mean()
    console.say(
        f"  linear head on {len(labels)} feature vectors of length {features.shape[1]}: penalty {head.penalty:g}, "
        f"chosen from {len(head.losses)}; cross-validated training accuracy {percent(accuracy, 2)}"
    )
    return SolvedHead(replace(head, weight=head.weight.cpu(), bias=head.bias.cpu()), train)


def _linear_head(model: Network) -> nn.Linear:
    linear = [m for part in model.modules_of("head") for m in part.modules() if isinstance(m, nn.Linear)]
    if len(linear) != 1:
        raise UserError(
            f'head = "auto": the head of {model.arch["name"]} is not a single linear layer; use head = "train"'
        )
    return linear[0]
