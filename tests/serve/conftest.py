"""The model that the tests of this folder serve, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Client, client, write_random_model

from linnaeus.inference.classifier import Classifier, load
from linnaeus.serve.limits import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def classifier(model: Path) -> Classifier:
    return load(model)


@pytest.fixture(scope="module")
def web(classifier: Classifier) -> Iterator[Client]:
    with client(classifier, Limits(request_bytes=50_000, images=4, pixels=1_000_000)) as web:
        yield web
