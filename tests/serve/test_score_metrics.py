"""/metrics shows the scores of the answers, and each query of the dashboard and of its page names what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from served import OCTETS, Client, client, png
from tiny import GRAY, mini, write_tiny_model

from linnaeus.inference.classifier import Classifier, load
from linnaeus.metrics.ood import Thresholds, unit
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.serve.score_metrics import CONFIDENCE_BINS, DISTANCE_BINS, Quantiles, ScoreMetrics

DOCS = Path(__file__).parents[2] / "docs"
SAMPLE = re.compile(r"^(linnaeus_\w+?)(?:\{(.*?)\})? ([\d.e+-]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A model that recognizes unknown images."""
    network = mini().eval()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    x = GRAY.normalize(torch.randint(0, 256, (20, GRAY.size, GRAY.size, 1), dtype=torch.uint8))
    with torch.inference_mode():
        references = unit(network.features_and_logits(x)[0].numpy())[:4].astype(np.float16)
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors", network)
    model = load(path)
    detector = UnknownDetector(Thresholds(0.05, 0.2, 20, 19), references)
    model.detector = model.run.detector = detector  # type: ignore[attr-defined]
    return model


@pytest.fixture(scope="module")
def answered(knowing: Classifier) -> Iterator[tuple[Client, list[dict]]]:
    with client(knowing) as web:
        posts = [web.post("/predict", content=png(i, i % 3), headers=OCTETS) for i in range(12)]
        yield web, [post.json()["predictions"][0] for post in posts]


def values(text: str, name: str) -> dict[str, float]:
    """Labels -> value of the samples of a metric."""
    return {labels: float(value) for found, labels, value in SAMPLE.findall(text) if found == name}


def test_the_scores_of_all_answers_are_in_the_metrics(answered: tuple[Client, list[dict]]):
    web, answers = answered
    text = web.get("/metrics").text
    distances = [answer["distance"] for answer in answers]
    confidences = [answer["top"][0]["probability"] for answer in answers]
    assert values(text, "linnaeus_distance_count") == values(text, "linnaeus_confidence_count") == {"": 12}
    assert values(text, "linnaeus_distance_sum")[""] == pytest.approx(sum(distances), rel=1e-6)
    median = 'quantile="0.5"'
    low, high = sorted(distances)[5:7]
    assert 0.98 * low <= values(text, "linnaeus_distance_quantile")[median] <= 1.02 * high
    low, high = sorted(confidences)[5:7]
    assert low - 1e-3 <= values(text, "linnaeus_confidence_quantile")[median] <= high + 1e-3
    assert values(text, "linnaeus_unknown_distance") == {"": 0.05}
    assert values(text, "linnaeus_unknown_probability") == {"": 0.2}
    assert values(text, "linnaeus_unknown_expected")[""] == pytest.approx(0.05)
    unknown = sum(answer["unknown"] for answer in answers)
    assert values(text, "linnaeus_images_total").get('result="unknown"', 0) == unknown


def test_a_model_that_cannot_tell_has_its_confidence_alone(classifier: Classifier):
    with client(classifier) as web:
        assert "linnaeus_confidence_quantile{" not in web.get("/metrics").text, "no image, no quantile"
        web.post("/predict", content=png(), headers=OCTETS)
        text = web.get("/metrics").text
    assert values(text, "linnaeus_confidence_count") == {"": 1}
    assert "linnaeus_distance" not in text
    assert "linnaeus_unknown" not in text


def test_an_export_without_the_distance_expects_no_share_of_unknown_images():
    """That of validation is by both scores; by the probability alone, fewer images are unknown."""
    for has_distance in (True, False):
        ScoreMetrics(registry := CollectorRegistry(), Thresholds(0.05, 0.2, 20, 19), has_distance)
        text = generate_latest(registry).decode()
        assert values(text, "linnaeus_unknown_probability") == {"": 0.2}
        assert bool(values(text, "linnaeus_unknown_expected")) == has_distance
    ScoreMetrics(registry := CollectorRegistry(), Thresholds(None, 0.2, 20, 19), False)
    assert values(generate_latest(registry).decode(), "linnaeus_unknown_expected")[""] == pytest.approx(0.05)


@pytest.mark.parametrize("edges", [CONFIDENCE_BINS, DISTANCE_BINS], ids=["confidence", "distance"])
def test_quantiles_are_those_of_all_values_in_constant_memory(edges: np.ndarray):
    sample = np.random.default_rng(0).beta(1.2, 3, 5000)
    quantiles = Quantiles("name", "text", edges)
    for value in sample:
        quantiles.observe(value)
    for share in (0.05, 0.5, 0.95):
        assert quantiles.quantile(share) == pytest.approx(np.quantile(sample, share), rel=0.02)
    for extreme in (-1.0, 0.0, 2.0, 99.0):
        quantiles.observe(extreme)
    assert quantiles._counts.sum() == 5004
    assert quantiles._counts.nbytes < 20_000


def test_each_query_names_a_metric_and_labels_that_exist(answered: tuple[Client, list[dict]]):
    dashboard = json.loads((DOCS / "monitoring" / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    page = (DOCS / "howto" / "monitor.md").read_text(encoding="utf-8")
    queries += re.findall(r"`(linnaeus_[^`]*)`", page) + re.findall(r"expr: >\n(.*?)for:", page, re.DOTALL)
    text = answered[0].get("/metrics").text
    labels = {name: set(re.findall(r"(\w+)=", of)) for name, of, _ in SAMPLE.findall(text)}
    families: dict[str, set[str]] = {name.removesuffix("_count"): set() for name in labels if name.endswith("_count")}
    assert len(queries) > 20
    for query in queries:
        for name, selector in re.findall(r"(linnaeus_\w+)(?:\{(.*?)\})?", query):
            known = labels.get(name, labels.get(f"{name}_count", families.get(name)))
            assert known is not None, f"{name} in {query}"
            assert set(re.findall(r"(\w+)(?=!?=|,|$)", re.sub('".*?"', "", selector))) <= known, query
        for grouped in re.findall(r"by \((\w+)\) \(rate\((linnaeus_\w+)", query):
            assert grouped[0] in labels[grouped[1]], query
