"""The estimator does what scikit-learn's tools ask of one, and answers as the model file does."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from tiny import draw, mini, samples, settings, write_images

import linnaeus
from linnaeus.errors import UserError
from linnaeus.recipe import Recipe
from linnaeus.sklearn import ImageClassifier
from linnaeus.sklearn.inputs import table_of


def recipe(epochs: int = 4, **more: Any) -> Recipe:
    phase = {"epochs": epochs, "batch": 16, "lr": 1e-2}
    return Recipe.model_validate({"name": "tiny", **settings(), "phase": [phase], **more})


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """(90, 28, 28) uint8 and their labels, words."""
    images, labels = samples(90)
    return images, np.array(["rose", "daisy", "lily"])[labels]


@pytest.fixture(scope="module")
def fitted(pictures: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    return ImageClassifier(recipe(6), out=tmp_path_factory.mktemp("sklearn") / "run").fit(*pictures)


def test_answers_have_the_values_of_the_labels(fitted: ImageClassifier):
    images, labels = samples(60, seed=7)
    words = np.array(["rose", "daisy", "lily"])[labels]
    assert fitted.classes_.tolist() == ["daisy", "lily", "rose"]
    probabilities = fitted.predict_proba(images)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert fitted.score(images, words) > 0.9
    assert fitted.metrics_["n"] == 9
    assert (fitted.predict(images) == fitted.classes_[probabilities.argmax(1)]).all()


def test_is_the_model_file_of_the_run(fitted: ImageClassifier):
    images, _ = samples(8, seed=3)
    model = linnaeus.load(fitted.out)  # type: ignore[arg-type]
    assert model.classes == ("daisy", "lily", "rose")
    np.testing.assert_array_equal(
        fitted.predict_proba(images), np.array([answer.probabilities for answer in model.predict(list(images))])
    )


def test_paths_and_numbers_as_labels(tmp_path: Path):
    write_images(tmp_path, each=30)
    paths = sorted(tmp_path.rglob("*.png"))
    labels = [int(path.parent.name) * 10 for path in paths]
    found = ImageClassifier(recipe(6)).fit(paths, labels)
    assert found.classes_.tolist() == [0, 10, 20]
    assert found.score([str(path) for path in paths], labels) > 0.9
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no\.png"):
        found.predict([tmp_path / "no.png"])


def test_a_list_of_images_and_none_at_all(fitted: ImageClassifier):
    images, _ = samples(4)
    np.testing.assert_array_equal(fitted.predict_proba(list(images)), fitted.predict_proba(images))
    assert fitted.predict_proba([]).shape == (0, 3)


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_verbose_prints_epochs_and_then_details(verbose: int, pictures, capsys: pytest.CaptureFixture[str]):
    ImageClassifier(recipe(1), verbose=verbose).fit(*pictures)
    out = capsys.readouterr().out
    assert ("epoch 1/1" in out) == (verbose >= 1)
    assert ("the phase is too short to try others" in out) == (verbose >= 2)


def test_a_custom_network_is_not_changed(pictures: tuple[np.ndarray, np.ndarray]):
    network = mini()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = ImageClassifier(recipe(2), model=network).fit(*pictures)
    assert all((before[name] == value).all() for name, value in network.state_dict().items())
    assert found.predict(pictures[0][:5]).shape == (5,)
    again = ImageClassifier(recipe(2), model=network).fit(*pictures)
    np.testing.assert_array_equal(again.predict_proba(pictures[0]), found.predict_proba(pictures[0]))


def test_groups_stay_together(pictures: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    """All images of a group are on one side of the split, as split.csv tells."""
    groups = np.arange(90) // 6
    ImageClassifier(recipe(1), out=tmp_path / "run").fit(*pictures, groups=groups)
    lines = (tmp_path / "run" / "split.csv").read_text().splitlines()[1:]
    sides: dict[int, set[str]] = {}
    for i, line in enumerate(lines):
        split = next(word for word in ("train", "valid") if f",{word}" in line)
        sides.setdefault(int(groups[i]), set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "valid"}


@pytest.mark.long
def test_cross_validation_and_grid_search(pictures: tuple[np.ndarray, np.ndarray]):
    estimator = ImageClassifier(recipe(6))
    folds = StratifiedGroupKFold(2).split(*pictures, groups=np.arange(90) // 6)
    scores = cross_val_score(estimator, *pictures, cv=folds, error_score="raise")
    assert scores.shape == (2,)
    assert scores.mean() > 0.6
    search = GridSearchCV(estimator, {"epochs": [1, 6]}, cv=2, error_score="raise").fit(*pictures)
    assert search.best_params_ == {"epochs": 6}


def test_in_a_pipeline(pictures: tuple[np.ndarray, np.ndarray]):
    images, labels = pictures
    pipeline = Pipeline([("invert", FunctionTransformer(lambda x: 255 - x)), ("classify", ImageClassifier(recipe(12)))])
    assert pipeline.fit(images, labels).score(images, labels) > 0.8
    assert pipeline.set_params(classify__epochs=1).get_params()["classify__epochs"] == 1


def test_one_column_of_a_table_is_a_list_of_paths(fitted: ImageClassifier, tmp_path: Path):
    """As a ColumnTransformer or a meta-estimator passes it on."""
    paths = [str(tmp_path / f"{k}.png") for k in range(3)]
    for k, path in enumerate(paths):
        Image.fromarray(draw(np.array([k]))[0]).save(path)
    column = np.array(paths, object)[:, None]
    np.testing.assert_array_equal(fitted.predict(column), fitted.predict(paths))


def test_clone_and_pickle(fitted: ImageClassifier, pictures: tuple[np.ndarray, np.ndarray]):
    fresh = clone(fitted)
    assert fresh.get_params()["out"] == fitted.out
    with pytest.raises(NotFittedError):
        fresh.predict(pictures[0])
    fitted.predict(pictures[0][:1])
    text = pickle.dumps(fitted)
    assert b"mini_resnet" in text  # the header of the model file, not the network's modules
    assert b"torch.nn" not in text
    np.testing.assert_array_equal(pickle.loads(text).predict(pictures[0]), fitted.predict(pictures[0]))


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_get_params_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
def test_scikit_learns_own_checks(check: str):
    """Except those that do not apply: the estimator takes images, not numbers in columns."""
    getattr(estimator_checks, check)("ImageClassifier", ImageClassifier())


GRAY = np.repeat(np.arange(64, dtype=np.uint8).reshape(1, 8, 8), 4, 0)


@pytest.mark.parametrize(
    ("pictures", "labels", "told"),
    [
        (np.zeros((4, 8, 8), np.float32), [0, 1, 0, 1], "float32"),
        (np.ma.masked_less(GRAY, 1), [0, 1, 0, 1], "images: a masked array, 4 of whose values are masked; fill them"),
        ([np.ma.masked_less(image, 1) for image in GRAY], [0, 1, 0, 1], "images: a masked array"),
        (GRAY, np.ma.masked_equal([0, 1, 0, 9], 9), "fit: labels: a masked array, 1 of whose values"),
        (np.zeros((4, 64), np.uint8), [0, 1, 0, 1], r"\(4, 64\)"),
        (np.zeros((4, 8, 8), np.uint8), [0, 1], r"4 images, but labels of shape \(2,\)"),
        ([np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)], [0, 1], "several sizes"),
        (np.zeros((2, 8, 8), np.uint8), np.array([1, "1"], object), "several types"),
        (np.zeros((2, 8, 8), np.uint8), [1, "1"], "several types"),
        (
            np.zeros((4, 8, 8), np.uint8),
            [0.0, np.nan, 1.0, np.nan],
            r"2 of 4 labels are missing, .* position 1 \(nan\)",
        ),
        (np.zeros((3, 8, 8), np.uint8), ["a", "b", float("nan")], "1 of 3 labels are missing"),
        (np.zeros((3, 8, 8), np.uint8), ["a", None, "b"], r"position 1 \(None\)"),
        (np.zeros((2, 8, 8), np.uint8), np.array(["2026", "NaT"], "datetime64[Y]"), "1 of 2 labels are missing"),
        (np.zeros((3, 8, 8), np.uint8), [4, 4, 4], "fit: all labels are 4; a classifier needs two or more classes"),
        ([f"gone/{i}.png" for i in range(20)], [0, 1] * 10, "gone"),
    ],
)
def test_what_does_not_fit_is_one_line(pictures: Any, labels: Any, told: str):
    with pytest.raises(UserError, match=told) as caught:
        ImageClassifier(recipe(1)).fit(pictures, labels)
    assert "\n" not in str(caught.value)


def test_images_whose_group_is_missing_are_in_no_group():
    table, _ = table_of(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], ["p", float("nan"), None, "p"])
    assert table.groups == ("p", "", "", "p")


def test_score_of_labels_that_were_not_in_training(fitted: ImageClassifier):
    """A fold may hold a rare class; labels of another form would all be wrong, silently."""
    images, labels = samples(6, seed=7)
    words = np.array(["rose", "daisy", "lily"])[labels]
    assert fitted.score(images, words, sample_weight=[1, 1, 1, 1, 1, 0]) > 0.5
    with pytest.warns(UserWarning, match="2 of 6 labels were not in training, such as 'tulip'; they count as wrong"):
        assert fitted.score(images, ["tulip", "tulip", *words[2:]]) <= 4 / 6
    for wrong, told in (
        (labels, "none of the labels, such as"),
        (words[:4], "6 images, but labels of shape"),
        ([*words[:5], None], r"1 of 6 labels are missing, the first at position 5 \(None\)"),
        ([*words[:5], float("nan")], "1 of 6 labels are missing"),
        ([*words[:5], 3], "labels of several types"),
    ):
        with pytest.raises(UserError, match=f"^score: {told}"):
            fitted.score(images, wrong)
    with pytest.raises(UserError, match=r"^score: 6 images, but sample_weight of shape"):
        fitted.score(images, words, sample_weight=[1.0])


def test_the_findings_of_the_check_are_where_the_warning_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without `out` no report is kept, so no warning may name one."""
    folder = write_images(tmp_path / "images", each=12)
    paths = sorted(folder.rglob("*.png"))
    shutil.copy(paths[0], tmp_path / "copy.png")
    found = ImageClassifier(recipe(1)).fit([*paths, tmp_path / "copy.png"], [*(p.parent.name for p in paths), "1"])
    assert "report.html" not in "".join(capsys.readouterr())
    assert "label-conflict" in {finding["kind"] for finding in found.check_["findings"]}


def noise(n: int = 20) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2, (n, 28, 28), dtype=np.uint8) * 255


@pytest.mark.parametrize(("label", "kind"), [("none of these", "U"), (None, "O"), (-1, "O")])
def test_an_unknown_image_gets_the_label_of_the_users_choice(fitted: ImageClassifier, label: Any, kind: str):
    images, _ = samples(20, seed=7)
    both = np.concatenate([images, noise()])
    plain = fitted.predict(both)
    marked = pickle.loads(pickle.dumps(fitted)).set_params(unknown_label=label)
    found = marked.predict(both)
    unknown = [given == label for given in found.tolist()]
    assert found.dtype.kind == kind
    assert sum(unknown[20:]) > 15
    assert sum(unknown[:20]) < 10
    assert all(a == b for a, b, out in zip(found.tolist(), plain.tolist(), unknown, strict=True) if not out)
    assert marked.predict(both[:1]).dtype.kind == kind, "the type does not depend on what is found"
    # Known images that are called unknown are wrong; outside images that are called unknown are right.
    truth = [*plain[:20].tolist(), *[label] * 20]
    assert marked.score(both, truth) == pytest.approx((20 - sum(unknown[:20]) + sum(unknown[20:])) / 40)
    assert marked.score(noise(), [label] * 20) == pytest.approx(sum(unknown[20:]) / 20)
    assert clone(marked).unknown_label == label


def test_numbers_stay_numbers_and_an_older_pickle_has_no_unknown_label(pictures: tuple[np.ndarray, np.ndarray]):
    images, words = pictures
    numbers = ImageClassifier(recipe(6), unknown_label=-1).fit(images, np.unique(words, return_inverse=True)[1])
    found = numbers.predict(noise())
    assert found.dtype.kind == "i"
    assert (found == -1).sum() > 10
    del numbers.unknown_label
    assert (numbers.predict(noise()) >= 0).all()


def test_an_unknown_label_that_is_a_class_is_refused(fitted: ImageClassifier, pictures: tuple[np.ndarray, np.ndarray]):
    with pytest.raises(UserError, match="unknown_label: 'rose' is one of the classes; choose another"):
        ImageClassifier(recipe(1), unknown_label="rose").fit(*pictures)
    again = pickle.loads(pickle.dumps(fitted)).set_params(unknown_label="lily")
    with pytest.raises(UserError, match="unknown_label: 'lily'"):
        again.predict(pictures[0])
    with pytest.raises(UserError, match="several labels has no unknown images"):
        ImageClassifier(recipe(1), unknown_label=None).fit(pictures[0], np.eye(3, dtype=int)[np.arange(90) % 3])
