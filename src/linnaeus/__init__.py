"""Train an image classifier on a folder of images, evaluate it, and use it.

    run = linnaeus.train("photos")                  # one folder per class; writes a run folder
    model = linnaeus.load(run.path)
    model.predict("rose.jpg").top(5)                # [("rose", 0.93), ...]
    model.evaluate("photos", split="valid").accuracy

The public names are imported on first use, so that `import linnaeus` itself is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from linnaeus._version import __version__

if TYPE_CHECKING:
    from linnaeus.errors import JobError as JobError
    from linnaeus.errors import UserError as UserError
    from linnaeus.inference.classifier import Classifier as Classifier
    from linnaeus.inference.classifier import Prediction as Prediction
    from linnaeus.inference.classifier import load as load
    from linnaeus.models import create as create
    from linnaeus.preprocess import Preprocessing as Preprocessing
    from linnaeus.preprocess import denormalize as denormalize
    from linnaeus.recipe import Recipe as Recipe
    from linnaeus.recipe import load_recipe as load_recipe
    from linnaeus.sweeps.run import Sweep as Sweep
    from linnaeus.sweeps.run import sweep as sweep
    from linnaeus.training.run import Run as Run
    from linnaeus.training.run import train as train


_HOMES = {
    "Classifier": "linnaeus.inference.classifier",
    "JobError": "linnaeus.errors",
    "Prediction": "linnaeus.inference.classifier",
    "Preprocessing": "linnaeus.preprocess",
    "Recipe": "linnaeus.recipe",
    "Run": "linnaeus.training.run",
    "Sweep": "linnaeus.sweeps.run",
    "UserError": "linnaeus.errors",
    "create": "linnaeus.models",
    "denormalize": "linnaeus.preprocess",
    "load": "linnaeus.inference.classifier",
    "load_recipe": "linnaeus.recipe",
    "sweep": "linnaeus.sweeps.run",
    "train": "linnaeus.training.run",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'linnaeus' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found once: the next access does not come here
    return value


def __dir__() -> list[str]:
    return __all__
