"""`label RUN FOLDER` asks only about images that the model has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_images, write_tiny_model

from linnaeus.console import Console
from linnaeus.data.images.content import content_hash
from linnaeus.errors import UserError
from linnaeus.inference.membership import Membership
from linnaeus.label.backbone import unseen_images
from linnaeus.label.session import list_images
from linnaeus.modelfile.safetensors import read_model


def test_images_that_the_model_has_seen_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_images(tmp_path / "photos", each=4)
    folder, paths = tmp_path / "photos", list_images(tmp_path / "photos")
    hashes = np.array([content_hash(str(folder / path)) for path in paths], np.uint64)
    splits = np.array(["train", "train", "valid", "test", *[""] * (len(paths) - 4)])
    _, about = read_model(write_tiny_model(tmp_path / "m.safetensors"))
    known = splits != ""
    about = replace(about, data={"contents": Membership.of(hashes[known], splits[known]).to_dict()})
    found = unseen_images(folder, paths, Path("run"), about, Console())
    assert found == paths[3:]  # the test image among them
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("warning: 3 images of")
    assert said.endswith("are left out, because run was trained on them")
    with pytest.raises(UserError, match="was trained on all of its images; give a folder of new ones"):
        unseen_images(folder, paths[:3], Path("run"), about, Console())
