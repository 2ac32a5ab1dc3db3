"""Outputs in the order of the samples, and figures that equal those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from tiny import CPU, GRAY, mini, samples
from torch import Tensor, nn

from linnaeus.data.batches import Batch, Batches, Partition, Sampling
from linnaeus.inference.forward import answer
from linnaeus.inference.runners import Scores, network_scores
from linnaeus.metrics.classification import confusion_matrix, figures
from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.outputs import Outputs, log_softmax, softmax
from linnaeus.stores.pixelstore import PixelStore


def outputs(n: int = 200, classes: int = 7, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=rng.dirichlet(np.ones(classes)))
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return Outputs(labels, logits)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("classes", [2, 10, 11, 20])
def test_the_figures_are_those_of_scikit_learn(classes: int):
    out = outputs(classes=classes)
    found = figures(out)
    every = np.arange(classes)
    assert found.n == 200
    assert found.correct == metrics.accuracy_score(out.labels, out.predicted, normalize=False)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(out.labels, out.predicted))
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(out.labels, out.predicted))
    assert found.loss == pytest.approx(metrics.log_loss(out.labels, out.probabilities, labels=every), rel=1e-6)
    if classes > 10:
        assert found.top5 == metrics.top_k_accuracy_score(out.labels, out.logits, k=5, labels=every)
    else:
        assert found.top5 is None
    matrix = confusion_matrix(out.labels, out.predicted, classes)
    assert np.array_equal(matrix, metrics.confusion_matrix(out.labels, out.predicted, labels=every))


def test_a_class_that_does_not_occur_does_not_count():
    """It does not lower the balanced accuracy, and it has a row in the confusion matrix."""
    out = Outputs(np.array([0, 0, 2]), np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9]], np.float32))
    assert figures(out).balanced_accuracy == pytest.approx((0.5 + 1) / 2)
    assert confusion_matrix(out.labels, out.predicted, 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (15, 148, 0.0624, 0.1605),  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_the_interval_is_wilsons(successes: int, n: int, low: float, high: float):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_stays_inside_and_holds_the_share():
    for n in range(1, 60):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1
            assert high - low < 1
    assert wilson(0, 0) == (0.0, 1.0)


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0, -1e4], [3e38, 3e38, -3e38]], np.float32)
    assert np.isfinite(log_softmax(logits)[0]).all()
    assert softmax(logits) == pytest.approx(np.array([[1, 0, 0], [0.5, 0.5, 0]]))
    assert softmax(outputs().logits).sum(1) == pytest.approx(1, abs=1e-12)


def prepare(batch: Batch) -> Tensor:
    return GRAY(batch.pixels, batch.shapes)


def test_answers_come_in_the_order_of_the_samples():
    """Whatever the order and the size of the batches, and with dropout off."""
    images, labels = samples(23)
    net = nn.Sequential(mini(), nn.Dropout(0.5)).train()
    store = PixelStore.from_arrays(images)
    one = answer(net, Batches(store, labels, batch=23, device=CPU), prepare)
    other = answer(net, Batches(store, labels, batch=4, device=CPU, sampling=Sampling(shuffle=True)), prepare)
    assert not net.training
    assert np.array_equal(one.labels, labels)
    assert np.array_equal(other.labels, labels)
    assert one.logits.dtype == np.float32
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
    with torch.no_grad():
        expected = net(GRAY(torch.from_numpy(images[..., None]), np.full((23, 2), 28)))
    np.testing.assert_allclose(one.logits, expected.numpy(), atol=1e-5)


def test_distances_come_in_the_order_of_the_samples():
    images, labels = samples(23)
    store, net = PixelStore.from_arrays(images), mini().eval()
    references = np.eye(net.head_input, dtype=np.float16)[:3]

    def scores(x: Tensor) -> Scores:
        return network_scores(net, references, x)

    one = answer(scores, Batches(store, labels, batch=23, device=CPU), prepare)
    other = answer(scores, Batches(store, labels, batch=4, device=CPU, sampling=Sampling(shuffle=True)), prepare)
    assert one.distances is not None
    assert len(set(one.distances.round(4))) > 5
    assert other.distances == pytest.approx(one.distances, abs=1e-5)
    assert other.take(np.array([7, 2])).distances == pytest.approx(one.distances[[7, 2]], abs=1e-5)


def test_a_sample_counted_twice_is_an_error():
    """Drawing with replacement, as in training, misses some and repeats others."""
    images, labels = samples(23)
    store = PixelStore.from_arrays(images)
    drawn = Batches(store, labels, batch=8, device=CPU, sampling=Sampling(True, weights=np.full(23, 1 / 23)))
    with pytest.raises(AssertionError, match="exactly once"):
        answer(mini(), drawn, prepare)
    half = Batches(store, labels, batch=8, device=CPU, partition=Partition(0, 2))
    with pytest.raises(AssertionError, match="exactly once"):
        answer(mini(), half, prepare)


def test_figures_read_as_a_sentence():
    out = Outputs(np.array([0, 1]), np.array([[1, 0], [1, 0]], np.float32))
    one_class = "not significantly better than always answering the most frequent class: 50.00 %"
    assert str(figures(out)) == f"50.00 % (1 of 2, 95 % interval 9.5 % to 90.5 %), {one_class}"
    said = figures(out).to_dict()
    names = {"n", "correct", "accuracy", "accuracy_ci95", "top5", "loss", "balanced_accuracy", "most_frequent"}
    assert names == set(said)
    assert isinstance(said["accuracy_ci95"], list)
