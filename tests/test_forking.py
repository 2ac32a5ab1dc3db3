"""Tests that fork pass, or are skipped by name, on a machine with a GPU, whatever ran before them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from killing import in_child
from several import several

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


@pytest.mark.skipif(bool(os.environ.get("LINNAEUS_TEST_GPU")), reason="the GPU is wanted")
def test_the_tests_see_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("start", [lambda: in_child(lambda: None), lambda: several(2, lambda rank: None)])
def test_a_test_that_forks_is_skipped_beside_a_gpu(monkeypatch: pytest.MonkeyPatch, start):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="CUDA"):
        start()


def test_all_forks_of_the_tests_are_such_forks():
    files = [file for file in Path(__file__).parent.rglob("*.py") if file.name not in ("forking.py", "test_forking.py")]
    bare = re.compile(r"\bos\.fork\(\)")
    assert [file.name for file in files if bare.search(file.read_text(encoding="utf-8"))] == []
