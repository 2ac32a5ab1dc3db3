"""The files of a run folder.

    model.safetensors   the best model so far
    recipe.toml         the resolved recipe, defaults included: `train --recipe` on it repeats the run
    history.csv         one row per epoch
    metrics.json        the figures of the saved model with counts and intervals, and the machine and versions used
    evaluation.json     the same for every class, with the confusion matrix and the curves
    predictions.csv     one row per validation and test image
    check.json          problems found in the data, in the format of `linnaeus check --json`
    check-labels.json   labels of training images that look wrong to a solved head, in the same format
    split.csv           path, label and split of every image, in the format of the CSV reader
    bad_images.csv      path of every image that was left out, with the reason
    changes.json        what `linnaeus classes` or `linnaeus forget` changed, and the paired test of both runs
    curves.png, predictions.png, confusion.png
    report.html         everything above on one page that needs no network
    checkpoint/         the state that --resume needs; removed when the run has finished
    .lock               held by the training process; the file may outlive a killed process, the lock does not
    penalties-phaseN.csv  the penalties tried for a solved head, with loss and accuracy on held-out images
    lr-phaseN.png       the learning-rate range test of phase N, if its lr is "auto"
    tensorboard/        events, with --track tensorboard
    tracking.json       the identifiers of the run in MLflow and Trackio, with --track
    model.onnx, model-int8.onnx, exports.json     written by `linnaeus export`, with the speed of each on this machine

A file that was not requested, or does not apply, is absent.
"""

from __future__ import annotations

RECIPE = "recipe.toml"
HISTORY = "history.csv"
METRICS = "metrics.json"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
CHECK = "check.json"
LABEL_CHECK = "check-labels.json"
SPLIT = "split.csv"
CHANGES = "changes.json"
BAD_IMAGES = "bad_images.csv"
TRACKING = "tracking.json"
REPORT = "report.html"
CHECKPOINT = "checkpoint"
IDENTITY = "run.json"
"""In the folder `checkpoint`: what the run is. It is written first of all files, and its removal ends the run."""
MANIFEST = "checkpoint.json"  # in the folder `checkpoint`: lists the files of the checkpoint, and is written last
FILES = frozenset(
    (
        *(RECIPE, HISTORY, METRICS, EVALUATION, PREDICTIONS, CHECK, SPLIT, CHANGES, BAD_IMAGES, TRACKING, REPORT),
        *(LABEL_CHECK, IDENTITY, MANIFEST, "model.safetensors", "curves.png", "predictions.png", "confusion.png"),
    )
)
"""Names of the files that a run writes."""
