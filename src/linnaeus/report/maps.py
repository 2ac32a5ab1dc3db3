"""Heat maps for the page: where a model sees the class that it named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.report.album import LARGE, Heat


def heat_maps(classifier: Classifier) -> Callable[[Table], Heat]:
    """For `write_report`: Grad-CAM of the predicted class, over what the network sees of a table's image i.

    A network without a stage that could be drawn has none.
    """
    from linnaeus.explain.saliency import choose_stages, explain
    from linnaeus.report.heat import overlay

    side = classifier.preprocessing.size
    try:
        stages = choose_stages(classifier.network, side)
    except UserError:
        return lambda table: lambda i: None

    def of(table: Table) -> Heat:
        def draw(i: int) -> np.ndarray | None:
            (prediction,) = classifier.predict([table.image(i)])
            if prediction.image is None:
                return None
            (found,) = explain(classifier, [prediction], stages=stages)
            return overlay(prediction.image, found.maps[stages[0]], max(side, LARGE))

        return draw

    return of
