"""A server of a model that gives images several labels, and its page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import OCTETS, ThreadServer, client, files, png
from tiny import write_label_model
from watching import Watcher

from linnaeus.inference.classifier import Classifier, load
from linnaeus.serve.pages import translations
from linnaeus.text import typeset_percent

EN = translations()["en"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(write_label_model(tmp_path_factory.mktemp("labels") / "model.safetensors"))


def images() -> list[bytes]:
    return [png(seed, seed % 3) for seed in range(6)]


def test_predictions_are_those_of_the_classifier(labels: Classifier):
    expected = [labels.predict(data) for data in images()]
    assert len({len(each.given) for each in expected}) > 1, "images with different numbers of labels"
    with client(labels) as web:
        response = web.post("/predict", files=files(*images()))
        assert response.status_code == 200, response.text
        for answer, prediction in zip(response.json()["predictions"], expected, strict=True):
            assert answer["labels"] == [labels.classes[i] for i in prediction.given]
            assert [entry["probability"] for entry in answer["top"]] == pytest.approx(
                [p for _, p in prediction.ranked(3)], abs=1e-5
            )
            assert answer["unsure"] is False
        one = web.post("/predict?top=1", content=images()[0], headers=OCTETS).json()["predictions"][0]
        assert len(one["top"]) == 1
        assert one["labels"] == [labels.classes[i] for i in expected[0].given]
        schema = web.get("/openapi.json").json()["components"]["schemas"]["Prediction"]["properties"]
        assert {"labels", "maps"} <= set(schema)
        assert "linnaeus_confidence" in web.get("/metrics").text


def test_the_description_has_the_task_and_the_thresholds(labels: Classifier):
    with client(labels) as web:
        model = web.get("/model").json()
    assert model["task"] == "multi-label"
    assert model["thresholds"] == [0.5, 0.2, None]
    assert model["calibrated"] is True


def test_every_label_that_is_given_has_a_heat_map(labels: Classifier):
    with client(labels) as web:
        for data in images():
            answer = web.post("/predict?explain=1", content=data, headers=OCTETS).json()["predictions"][0]
            explained = [entry["explained"]["class"] for entry in answer["maps"]]
            assert explained == (answer["labels"] or [answer["top"][0]["class"]])
            assert answer["explained"] == answer["maps"][0]["explained"]
            assert answer["heat_map"].startswith("data:image/png")
            assert len({entry["heat_map"] for entry in answer["maps"]}) == len(explained)


@pytest.fixture
def page(browser: Any, labels: Classifier) -> Iterator[Any]:
    """At the end there must be no message on the console."""
    watcher = Watcher(browser)
    with ThreadServer(labels) as server:
        page = watcher.open(server.address)
        page.locator("#model").wait_for()
        yield page
        watcher.close()
    assert watcher.script_messages() == []


@pytest.mark.long
def test_the_page_shows_all_labels(page: Any, labels: Classifier, tmp_path: Path):
    expected = [labels.predict(data) for data in images()]
    assert "87.5" in page.locator("#lead").inner_text()
    assert "3 labels" in page.locator("#lead").inner_text()
    uploads = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": data} for i, data in enumerate(images())]
    page.set_input_files("#files", uploads)
    page.locator(".answer.answered").nth(len(uploads) - 1).wait_for()
    texts = page.locator(".headline b").all_inner_texts()
    assert texts == [", ".join(each.labels) or EN["no_label"] for each in expected]
    for i, prediction in enumerate(expected):
        bars = page.locator(".answer").nth(i).locator(".bars li")
        given = bars.locator("xpath=self::*[contains(@class, 'given')]")
        assert given.locator(".name").all_inner_texts() == prediction.labels
        assert sorted(bars.locator(".number").all_inner_texts()) == sorted(
            typeset_percent(p, 1) for _, p in prediction.ranked(3)
        )
    most = max(range(len(expected)), key=lambda i: len(expected[i].given))
    page.locator(".answer").nth(most).locator("[data-action=heat]").click()
    maps = page.locator(".answer").nth(most).locator(".maps li")
    maps.first.wait_for()
    assert maps.all_inner_texts() == expected[most].labels
    with page.expect_download() as saved:
        page.locator("#csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text(encoding="utf-8-sig"))))
    found = {row["path"]: row["labels"] for row in rows}
    assert found == {
        f"{i}.png": "|".join(json.loads(json.dumps(p.to_dict()))["labels"]) for i, p in enumerate(expected)
    }
    page.locator("#language").click()
    assert "3 个标签" in page.locator("#lead").inner_text()
