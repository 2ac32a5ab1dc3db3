"""The training loop: loss, reported metrics, freezing, moving average and early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, GRAY, mini, phase, phase_run, samples, stream
from torch import nn

from linnaeus.data.batches import Batch, Sampling
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.errors import JobError
from linnaeus.models import Network, create, wrap
from linnaeus.recipe import Phase
from linnaeus.training.loop import Epoch, Step, fit
from linnaeus.training.loss import Criterion, EpochTotals
from linnaeus.training.optim import freeze, training_stages
from linnaeus.training.phase import Stream


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("cpu", "32")


def train(
    model: Network,
    spec: Phase,
    data: Stream,
    engine: Engine,
    valid: Stream | None = None,
    first_epoch: int = 0,
    micro_batch: int | None = None,
    **more,
) -> list[Epoch]:
    """The epochs of a phase; `more` are arguments of fit()."""
    freeze(model, training_stages(model, spec.train))
    run = phase_run(
        model, spec, data, valid, classes=model.arch["classes"], first_epoch=first_epoch, micro_batch=micro_batch
    )
    return list(fit(run, engine, **more))


def plain_data(n: int = 48, batch: int = 16, **more) -> Stream:
    return stream(*samples(n), batch=batch, **more)


@pytest.mark.parametrize(("name", "epochs", "lr"), [("mini_resnet", 60, 0.003), ("resnet20", 15, 0.005)])
def test_one_batch_can_be_memorized(name: str, epochs: int, lr: float, engine: Engine):
    """In its best epoch; later, rounding decides whether a step is too long. 17 and 9 epochs are enough."""
    torch.manual_seed(0)
    model = mini() if name == "mini_resnet" else create(name, 3, 1)
    best = min(train(model, phase(epochs=epochs, lr=lr), plain_data(16), engine), key=lambda epoch: epoch.train_loss)
    assert best.train_loss < 0.02
    assert best.train_accuracy == 1
    if name == "mini_resnet":  # 10 steps are too few for the running statistics of BatchNorm
        assert best.valid.loss < 0.02


def test_early_stopping_counts_epochs_across_an_interruption(engine: Engine):
    """With a patience of 3, a phase interrupted after 2 epochs has one left; a finished phase stays finished."""
    spec = phase(epochs=9, early_stop=3)
    snapshots: list[Any] = []
    for epoch in fit(phase_run(mini(), spec, plain_data()), engine, better=lambda valid: False):
        assert epoch.snapshot is not None
        snapshots.append(copy.deepcopy(epoch.snapshot()))
    assert len(snapshots) == 3
    for over in (1, 2, 3):
        left = train(mini(), spec, plain_data(), engine, better=lambda valid: False, resume=snapshots[over - 1])
        assert [epoch.epoch for epoch in left] == list(range(over + 1, 4))


@pytest.mark.parametrize("name", ["mini_resnet", "resnet20", "resnet18"])
def test_the_loss_starts_at_the_logarithm_of_the_number_of_classes(name: str, engine: Engine):
    torch.manual_seed(0)
    data = stream(*samples(20, classes=5), batch=20)
    first = train(create(name, 5, 1), phase(batch=20), data, engine)[0]
    assert first.train_loss == pytest.approx(math.log(5), rel=0.12)


def test_the_training_loss_is_the_mean_over_samples(engine: Engine):
    """13 samples in batches of 5, 5 and 3: a mean of batch means would give the last three too much weight."""
    images, labels = samples(13)
    model = mini()
    data = stream(images, labels, batch=5)
    seen: list[float] = []
    targets = torch.from_numpy(labels)

    def record(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        if module.training:
            batch_targets = targets[len(seen) :][: len(out)]
            seen.extend(F.cross_entropy(out, batch_targets, reduction="none").tolist())

    model.register_forward_hook(record)
    epoch = train(model, phase(batch=5, lr=0.05, optimizer="sgd"), data, engine)[0]
    assert len(seen) == 13
    assert epoch.train_loss == pytest.approx(float(np.mean(seen)), rel=1e-6)
    batches = [np.mean(seen[:5]), np.mean(seen[5:10]), np.mean(seen[10:])]
    assert abs(epoch.train_loss - np.mean(batches)) > 1e-5  # otherwise the test could not tell them apart


@pytest.mark.parametrize(
    "change", [{}, {"class_weights": "balanced"}, {"label_smoothing": 0.1}, {"mixup": 0.4, "cutmix": 1.0}]
)
def test_micro_batches_give_the_same_step_as_the_whole_batch(change: dict, engine: Engine):
    """Without BatchNorm, micro-batches change nothing but the memory; also with mixup and CutMix."""
    whole, divided = mini(), mini()
    spec = phase(optimizer="sgd", lr=0.1, momentum=0, batch=21, **change)
    data = stream(*samples(21), batch=21)
    one = train(whole, spec, data, engine)[0]
    other = train(divided, spec, data, engine, micro_batch=4)[0]
    for (name, a), b in zip(whole.named_parameters(), divided.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
    assert one.train_accuracy == other.train_accuracy


def test_no_micro_batch_is_a_single_image(engine: Engine):
    """17 images in micro-batches of at most 16 are 8 and 9: BatchNorm cannot be trained on a single image."""
    sizes: list[int] = []
    model = mini()

    def record(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        if module.training:
            sizes.append(len(out))

    model.register_forward_hook(record)
    train(model, phase(batch=17), stream(*samples(17), batch=17), engine, micro_batch=16)
    assert sizes == [8, 9]


def step_gradients(model: Network, spec: Phase, data: Stream, engine: Engine) -> dict[str, torch.Tensor]:
    """The gradients of one step: with SGD at rate 1 and no momentum, the change of the weights."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, spec, data, engine)
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def test_a_step_follows_the_gradient_of_the_mean_loss(engine: Engine):
    images, labels = samples(12)
    ours = step_gradients(
        mini(), phase(optimizer="sgd", lr=1.0, momentum=0, batch=12), stream(images, labels, batch=12), engine
    )
    model = mini()
    x = GRAY(torch.from_numpy(images[..., None]), np.full((12, 2), 28))
    F.cross_entropy(model(x), torch.from_numpy(labels)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_clipping_bounds_the_norm_of_the_gradient(engine: Engine):
    def norm(clip: float) -> float:
        spec = phase(optimizer="sgd", lr=1.0, momentum=0, batch=48, clip=clip)
        gradients = step_gradients(mini(), spec, plain_data(batch=48), engine)
        return float(torch.cat([g.flatten() for g in gradients.values()]).norm())

    free = norm(0)
    assert norm(free / 3) == pytest.approx(free / 3, rel=1e-3)
    assert norm(free * 3) == pytest.approx(free, rel=1e-3)  # a short gradient is not changed


def test_class_weights_favor_rare_classes_and_have_mean_one():
    labels = np.array([0] * 8 + [1] * 2)
    criterion = Criterion(phase(class_weights="balanced"), labels, 3, CPU)
    assert criterion.weights is not None
    assert criterion.weights.tolist() == pytest.approx([10 / 16, 10 / 4, 0])
    assert float(criterion.weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(labels)
    weighted = F.cross_entropy(logits, targets, reduction="none") * criterion.weights[targets]
    assert float(criterion(logits, targets)) == pytest.approx(float(weighted.sum()), rel=1e-6)
    shares = F.one_hot(targets, 3).float()  # the same targets in the format of mixup
    assert float(criterion(logits, shares)) == pytest.approx(float(weighted.sum()), rel=1e-6)


def test_label_smoothing_equals_torch():
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    ours = Criterion(phase(label_smoothing=0.1), targets.numpy(), 3, CPU)(logits, targets)
    torch.testing.assert_close(ours, F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum"))


@pytest.mark.parametrize(
    "change",
    [
        {"class_weights": "balanced"},
        {"label_smoothing": 0.1},
        {"optimizer": "sgd", "nesterov": True, "lr": 0.05, "clip": 0.5},
        {"optimizer": "adamw", "weight_decay": 0.01, "decay_norms": False},
        {"ema": 0.9},
        {"mixup": 0.2, "class_weights": "balanced"},
        {"cutmix": 1.0},
        {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_option_trains(change: dict, engine: Engine):
    """With mixup or CutMix images have no single label, so there is no training accuracy."""
    data = plain_data(sampling=Sampling(shuffle=True), batch=12)
    epochs = train(mini(), phase(**{"epochs": 8, "lr": 0.01} | change), data, engine)
    assert epochs[-1].valid.accuracy > 0.8
    mixes = "mixup" in change or "cutmix" in change
    assert all((epoch.train_accuracy is None) == mixes for epoch in epochs)


def test_early_stopping_after_epochs_without_a_better_model(engine: Engine):
    def better_until(last: int) -> Callable:
        count = iter(range(1, 100))
        return lambda figures: next(count) <= last

    for better, patience, expected in ((3, 2, 5), (0, 1, 1), (20, 2, 6), (0, 0, 6)):
        epochs = train(
            mini(), phase(epochs=6, early_stop=patience), plain_data(16), engine, better=better_until(better)
        )
        assert [epoch.epoch for epoch in epochs] == list(range(1, expected + 1))


def test_the_moving_average_is_evaluated_and_returned(engine: Engine):
    """The returned network is the average, not the trained network, and has the reported validation loss."""
    model = mini()
    data = plain_data(48, batch=4)
    epoch = train(model, phase(epochs=1, batch=4, ema=0.5), data, engine)[0]
    assert epoch.model is not model
    average = epoch.model.state_dict()
    assert all(not torch.equal(average[name], value) for name, value in model.state_dict().items())
    again = train(epoch.model, phase(epochs=1, lr=1e-30), data, engine)[0]
    assert again.valid.loss == pytest.approx(epoch.valid.loss, abs=1e-6)


def test_balanced_sampling_draws_all_classes_equally_often(engine: Engine):
    labels = np.array([0] * 90 + [1] * 10)
    weights = np.where(labels == 0, 1 / 90, 1 / 10) / 2
    data = stream(samples(100)[0], labels, sampling=Sampling(shuffle=True, weights=weights))
    shown = np.concatenate([batch.labels.numpy() for epoch in range(10) for batch in data.batches.epoch(epoch)])
    assert len(shown) == 1000
    assert (shown == 1).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("first", [False, True])
def test_a_loss_that_is_not_finite_stops_the_run(first: bool, engine: Engine):
    """The error names step and learning rate, after a training step as well as after validation."""
    data = plain_data(16 if first else 48)
    spec = phase(epochs=3, lr=1e30, optimizer="sgd")
    with pytest.raises(JobError, match=r"epoch 1\b.*learning rate 1e\+30.*--lr 1e\+29") as caught:
        train(mini(), spec, data, engine)
    assert "\n" not in str(caught.value)
    assert ("validation" if first else "step") in str(caught.value)


def test_a_loss_that_is_not_finite_is_found_at_the_end_of_the_epoch_on_a_gpu():
    """On a GPU the loss is checked every 50 steps, and always at the end of an epoch."""
    total = EpochTotals(CPU)
    total.check_every = 50
    total.add(torch.tensor(math.nan), torch.tensor(0.0), 4)
    total.check_finite(0, 0, 0.1)  # not yet
    with pytest.raises(JobError, match="epoch 1, step 1 or"):
        total.check_finite(0, 0, 0.1, always=True)


@pytest.mark.parametrize("trained", [["head"], ["layer2"], ["layer3", "head"]])
def test_frozen_stages_keep_every_bit(trained: list[str], engine: Engine):
    """Weights and BatchNorm buffers; those of the trained stages change."""
    torch.manual_seed(0)
    model = create("resnet20", 3, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, phase(epochs=1, train=trained, lr=0.01), plain_data(), engine)
    for name, tensor in model.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == (model.stage_of(name) not in trained), name


def test_frozen_norms_keep_their_statistics_and_train_the_rest(engine: Engine):
    """No buffer changes and every parameter does; the first training loss equals that of evaluation."""
    torch.manual_seed(0)
    model = create("resnet20", 3, 1)
    model.train()(torch.randn(32, 1, 28, 28))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = plain_data(48, batch=48)
    first = train(model, phase(epochs=1, train=["layer3", "head"], lr=1e-9, batch=48, norms="frozen"), data, engine)[0]
    assert first.train_loss == pytest.approx(first.valid.loss, rel=1e-4)
    train(model, phase(epochs=1, train=["layer3", "head"], lr=0.01, norms="frozen"), data, engine)
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in model.state_dict().items():
        moves = model.stage_of(name) in ("layer3", "head") and name not in buffers
        assert torch.equal(tensor, before[name]) != moves, name


def test_dropout_of_a_frozen_stage_is_off(engine: Engine):
    modes: list[bool] = []

    class Seen(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)

    body = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), Seen(0.5))
    model = wrap(nn.Sequential(body, nn.Linear(8, 3)), 3, 1)
    train(model, phase(train=["1"]), plain_data(16), engine)
    assert modes == [False, False]  # in training and in evaluation
    modes.clear()
    train(model, phase(train=["0"]), plain_data(16), engine)
    assert modes == [True, False]


def test_auxiliary_heads_train_with_their_weight(engine: Engine):
    """With weight 0 they do not change; the reported loss is that of the main head."""
    images, labels = samples(8)
    data = stream(images, labels, batch=8)
    losses = []
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        model = create("inception_v1", 3, 1, aux=True)
        before = model.get_parameter("aux1.fc2.weight").detach().clone()
        spec = phase(optimizer="sgd", lr=0.01, batch=8, aux_weight=weight)
        losses.append(train(model, spec, data, engine)[0].train_loss)
        assert torch.equal(before, model.get_parameter("aux1.fc2.weight")) == (weight == 0)
    assert losses[0] == losses[1]


def test_the_step_callback_receives_every_step(engine: Engine):
    steps: list[Step] = []
    epochs = train(mini(), phase(epochs=2, batch=20), plain_data(48, batch=20), engine, on_step=steps.append)
    assert [(step.epoch, step.step, step.steps, step.samples) for step in steps] == [
        (1, 1, 3, 20),
        (1, 2, 3, 40),
        (1, 3, 3, 48),
        (2, 1, 3, 20),
        (2, 2, 3, 40),
        (2, 3, 3, 48),
    ]
    assert steps[-1].means() == (epochs[-1].train_loss, epochs[-1].train_accuracy)


def test_the_epochs_of_a_run_are_counted_through_its_phases(engine: Engine):
    """Otherwise two phases would have the same order and the same augmentation."""
    seen: list[tuple[int, list[int]]] = []
    data = plain_data(16, sampling=Sampling(shuffle=True))

    def prepare(batch: Batch, epoch: int) -> torch.Tensor:
        seen.append((epoch, batch.indices.tolist()))
        return GRAY(batch.pixels, batch.shapes)

    for first in (0, 2):
        stream = Stream(data.batches, prepare)
        train(mini(), phase(epochs=2), stream, engine, valid=plain_data(16), first_epoch=first)
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert len({tuple(order) for _, order in seen}) == 4


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_any_seed_of_a_recipe_can_seed_a_step(seed: int):
    seed_step(seed, 999, 99_999)
    one = torch.rand(3)
    seed_step(seed, 999, 99_998)
    assert not torch.equal(one, torch.rand(3))
