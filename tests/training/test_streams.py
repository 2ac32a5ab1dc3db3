"""The data of a phase: stored activations give the results of the whole network, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several import several

from linnaeus.cache import Cache, default_cache
from linnaeus.console import Console
from linnaeus.data.batches import Batches
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.models import Network, create
from linnaeus.models.executors import Executor, FrozenPart
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Phase
from linnaeus.stores import frozen
from linnaeus.stores.frozen import FrozenStages
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.stores.samples import Samples
from linnaeus.training.phase import Stream, TrainablePart
from linnaeus.training.streams import Streams

CLASSES, SIZE = 3, 32
HEAD = {"train": ["head"], "epochs": 2, "lr": 0.1, "batch": 8}
LAST = {"train": ["layer3", "head"], "epochs": 2, "lr": 0.1, "batch": 8}


@pytest.fixture
def network() -> Network:
    """A small network with BatchNorm statistics, in training mode, as it is after an epoch."""
    torch.manual_seed(0)
    network = create("resnet20", CLASSES)
    network.train()(torch.randn(16, 3, SIZE, SIZE))
    return network


def streams(network: Network, *phases: dict, cache: Cache | None = None) -> Streams:
    generator = np.random.default_rng(0)

    def samples(n: int) -> Samples:
        images = generator.integers(0, 256, (n, SIZE + 4, SIZE + 4, 3)).astype(np.uint8)
        return Samples(PixelStore.from_arrays(images), np.arange(n) % CLASSES)

    preprocessing = Preprocessing(SIZE + 4, SIZE)
    device = Engine("cpu").device
    stages = FrozenStages(network, preprocessing, device, Console(quiet=True), cache or default_cache())
    return Streams(stages, samples(21), samples(10), [Phase.model_validate(phase) for phase in phases], seed=0)


def logits(network: Network, cut: str | None, stream: Stream, epoch: int = 0) -> dict[int, torch.Tensor]:
    """The logits of the network for each sample of a stream."""
    network.eval()
    outputs: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for batch in stream.batches.epoch(epoch):
            out = TrainablePart(network, cut)(stream.prepare(batch, epoch))
            outputs |= dict(zip(batch.indices.tolist(), out, strict=True))
    return outputs


def whole(network: Network, s: Streams, which: str) -> torch.Tensor:
    """The reference: every image through the whole network."""
    samples: Samples = getattr(s, which)
    batch = next(iter(Batches(samples.rows, samples.labels, batch=99, device=torch.device("cpu")).epoch()))
    with torch.no_grad():
        return network.eval()(s.preprocessing(batch.pixels, batch.shapes))


def count_runs(network: Network, stage: str) -> list[int]:
    """Record the number of images that go through a stage of the network or of a copy of it."""
    seen: list[int] = []
    getattr(network, stage).register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    return seen


@pytest.mark.parametrize(("phase", "cut"), [(HEAD, "head"), (LAST, "layer3"), ({**HEAD, "train": ["all"]}, None)])
def test_the_cut_is_the_first_stage_that_trains(network: Network, phase: dict, cut: str | None):
    assert streams(network, phase).of(0)[0] == cut


@pytest.mark.parametrize("phase", [HEAD, LAST])
def test_stored_activations_give_the_logits_of_the_whole_network(network: Network, phase: dict):
    s = streams(network, phase)
    cut, train, valid = s.of(0)
    for which, stream in (("train", train), ("valid", valid)):
        expected = whole(network, s, which)
        found = logits(network, cut, stream)
        assert sorted(found) == list(range(len(expected)))
        torch.testing.assert_close(torch.stack([found[i] for i in sorted(found)]), expected, rtol=5e-3, atol=5e-3)


def test_nothing_below_the_cut_runs_after_the_first_time(network: Network):
    """Not in the second epoch, and not in the next run."""
    streams(network, HEAD).of(0)
    seen = count_runs(network, "layer1")
    cut, train, valid = streams(network, HEAD).of(0)
    for epoch in range(3):
        logits(network, cut, train, epoch)
        logits(network, cut, valid, epoch)
    assert sum(seen) == 0


@pytest.mark.parametrize(
    ("looks_at", "train", "cut"),
    [
        (["layer2", "layer3"], ["head"], "head"),
        (["layer2", "layer3"], ["layer3", "head"], "layer3"),
        (["layer1", "layer3"], ["layer3", "head"], "layer2"),  # a cut at layer3 would hide layer1 from the head
        (["stem", "layer3"], ["layer3", "head"], "layer1"),
    ],
)
def test_a_head_on_several_stages_gets_them_from_the_stores(looks_at, train, cut: str):
    torch.manual_seed(0)
    network = create("resnet20", CLASSES, head_stages=looks_at)
    network.train()(torch.randn(16, 3, SIZE, SIZE))
    s = streams(network, {**HEAD, "train": train}, {**LAST, "train": ["layer3", "head"]})
    found_cut, stream, _ = s.of(0)
    assert found_cut == cut
    expected, found = whole(network, s, "train"), logits(network, cut, stream)
    torch.testing.assert_close(torch.stack([found[i] for i in range(21)]), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.long
def test_int8_is_close_or_rejected_and_stored_separately(network: Network, monkeypatch: pytest.MonkeyPatch):
    """float and int8 activations have separate keys; a network that changes too much is rejected in one line."""
    pytest.importorskip("onnxruntime")
    _, plain, _ = streams(network, HEAD).of(0)
    s = streams(network, HEAD)
    s.frozen.int8 = s.train
    with monkeypatch.context() as patch:
        patch.setattr("linnaeus.models.executors.INT8_TOLERANCE", 1e-6)
        with pytest.raises(
            UserError, match=r"frozen_precision = \"int8\": it changes the outputs .* by \d+ %; remove the setting"
        ):
            s.of(0)
    _, rounded, _ = s.of(0)
    exact, close = (torch.cat([x.prepare(b, 0) for b in x.batches.epoch()]) for x in (plain, rounded))
    off = (exact - close).norm() / exact.norm()
    assert 1e-4 < off < 0.2
    assert s.frozen.made_by == {"stem to layer3": "int8"}


def test_networks_that_differ_in_the_head_stages_share_the_lower_stores():
    torch.manual_seed(0)
    network = create("resnet20", CLASSES)
    streams(network, LAST).of(0)
    other = create("resnet20", CLASSES, head_stages=["layer2", "layer3"])
    other.load_state_dict({**other.state_dict(), **{k: v for k, v in network.state_dict().items() if k[:2] != "fc"}})
    seen = count_runs(other, "layer1")
    streams(other, LAST).of(0)
    assert sum(seen) == 0
    streams(other, HEAD).of(0)
    assert sum(seen) > 0, "its features differ"


def test_the_store_of_a_later_phase_is_built_first(network: Network):
    """The store at layer3 serves the phase that trains layer3, and the input of the head is computed from it."""
    s = streams(network, HEAD, LAST)
    cut, train, _ = s.of(0)
    expected = whole(network, s, "train")
    found = logits(network, cut, train)
    torch.testing.assert_close(torch.stack([found[i] for i in range(21)]), expected, rtol=5e-3, atol=5e-3)
    assert len(default_cache().entries()) == 4  # input of layer3 and of the head, for training and validation
    s.of(1)
    assert len(default_cache().entries()) == 4


def test_other_weights_below_the_cut_are_another_store(network: Network):
    s = streams(network, LAST, HEAD, LAST)
    s.of(0)
    with torch.no_grad():
        network.get_parameter("layer3.0.conv1.weight").mul_(2)
    cut, train, _ = s.of(1)
    expected = whole(network, s, "train")
    found = logits(network, cut, train)
    torch.testing.assert_close(torch.stack([found[i] for i in range(21)]), expected, rtol=5e-3, atol=5e-3)


def test_views_are_drawn_once_and_take_turns(network: Network):
    augment = {"hflip": 0.5, "shift": 0.2}
    s = streams(network, {**HEAD, "augment": augment, "views": 3})
    cut, train, _ = s.of(0)
    epochs = [torch.stack([logits(network, cut, train, e)[i] for i in range(21)]) for e in range(6)]
    for first in range(3):
        torch.testing.assert_close(epochs[first], epochs[first + 3])
        assert not torch.allclose(epochs[first], epochs[(first + 1) % 3])
    # View v equals fresh augmentation in epoch v.
    fresh = streams(network, {**HEAD, "augment": augment})
    cut, stream, _ = fresh.of(0)
    of_view = [torch.stack([logits(network, cut, stream, v)[i] for i in range(21)]) for v in range(3)]
    for epoch in range(3):
        chosen = torch.stack([of_view[(i + epoch) % 3][i] for i in range(21)])
        torch.testing.assert_close(epochs[epoch], chosen, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(("phase", "images"), [(HEAD, 21), ({**HEAD, "augment": {"hflip": 0.5}}, 2 * 21)])
def test_the_number_of_training_images_chooses_the_executor(
    network: Network, phase: dict, images: int, monkeypatch: pytest.MonkeyPatch
):
    """A few validation images do not repay a fast executor, and the choice holds for the whole run."""
    numbers: list[int] = []
    choose = frozen.choose_executor

    def choosing(part: FrozenPart, sample: torch.Tensor, n: int, **more: Any) -> Executor:
        numbers.append(n)
        return choose(part, sample, n, **more)

    monkeypatch.setattr(frozen, "choose_executor", choosing)
    streams(network, phase).of(0)
    assert numbers == [images]


def test_equal_views_of_an_image_are_computed_once(network: Network, monkeypatch: pytest.MonkeyPatch):
    computed: list[int] = []

    def counting(part: FrozenPart, sample: torch.Tensor, n: int, **more: Any) -> Executor:
        def run(x: torch.Tensor) -> torch.Tensor:
            computed.append(len(x))
            return part(x)

        return Executor("plain", run, 0.0)

    monkeypatch.setattr(frozen, "choose_executor", counting)
    network.eval()
    _, train, _ = streams(network, {**HEAD, "augment": {"hflip": 0.5}, "views": 2}).of(0)
    rows, _ = train.batches.rows.gather(np.arange(2 * 21))
    equal = int((rows[0::2] == rows[1::2]).all(1).sum())
    assert 0 < equal < 21, "some images are mirrored in one of the views"
    of_the_shape = 1  # a batch that only tells the shape of a row
    assert sum(n for n in computed if n > of_the_shape) == 2 * 21 - equal + 10, "10 validation images"


def test_all_processes_learn_that_rank_0_found_no_executor(network: Network, monkeypatch: pytest.MonkeyPatch):
    def refusing(*args: Any, **more: Any) -> Executor:
        raise UserError("the error of bfloat16 is too large")

    monkeypatch.setattr(frozen, "choose_executor", refusing)

    def work(rank: int) -> str:
        s = streams(network, HEAD)
        s.frozen.group = s.group = Engine("cpu", "32")
        with pytest.raises(UserError) as error:
            s.of(0)
        return str(error.value)

    assert several(2, work) == ["the error of bfloat16 is too large"] * 2


def test_fresh_augmentation_stores_nothing_of_training(network: Network):
    s = streams(network, {**HEAD, "augment": {"hflip": 0.5}})
    s.of(0)
    assert [entry.about["n"] for entry in default_cache().entries()] == [10]


@pytest.mark.parametrize(("epochs", "stated"), [(4, False), (5, True)])
def test_views_are_advised_where_they_save_time(network: Network, capsys, epochs: int, stated: bool):
    s = streams(network, {**HEAD, "epochs": epochs, "augment": {"hflip": 0.5}})
    s.console = Console()
    s.of(0)
    said = capsys.readouterr().out
    assert "new augmentation in every epoch" in said
    assert ("with views = 4" in said) is stated


def test_without_room_for_stores_the_results_are_the_same(network: Network, tmp_path: Path):
    s = streams(network, HEAD, cache=Cache(tmp_path / "small", 64))
    cut, train, valid = s.of(0)
    for which, stream in (("train", train), ("valid", valid)):
        expected = whole(network, s, which)
        found = logits(network, cut, stream)
        torch.testing.assert_close(torch.stack([found[i] for i in sorted(found)]), expected, rtol=5e-3, atol=5e-3)
    assert s.frozen.cache.entries() == []
