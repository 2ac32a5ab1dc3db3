"""Head inputs for the images of a split, computed once and stored, so that metrics can be computed again."""

from __future__ import annotations

from functools import partial

import torch

from linnaeus.cache import default_cache
from linnaeus.console import Console
from linnaeus.data.batches import Batches
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.errors import UserError
from linnaeus.inference.forward import answer, local_batches
from linnaeus.inference.runners import Runner, TorchRunner, finite_scores
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.thumbnails import LARGEST_SIZE
from linnaeus.modelfile.safetensors import versions
from linnaeus.models import Network
from linnaeus.models.record import choice_key
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.frozen import FrozenStages, stored
from linnaeus.stores.samples import Samples

BATCH = 64  # images through the head at once, always as many: the last bits depend on it


def exact_stages(
    network: Network, preprocessing: Preprocessing, device: torch.device, group: ProcessGroup, console: Console
) -> FrozenStages | None:
    """The stages below the head, whose output has every bit that the figures of a model are made of.

    None where a network of the user's code may have changed since, and for small images, whose thumbnails count too.
    """
    if not network.has_features or network.arch["name"] == "custom" or preprocessing.size <= LARGEST_SIZE:
        return None
    bits = choice_key([versions(network.arch["name"])])
    return FrozenStages(network.eval(), preprocessing, device, console, default_cache(), group, exact=bits)


def feature_batches(
    network: Network,
    preprocessing: Preprocessing,
    samples: Samples,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    console: Console | None = None,
) -> Batches | None:
    """This process's share of the input of the head, in float32, for `answer`; from the cache where it has it.

    None where it cannot be kept.
    """
    frozen = exact_stages(network, preprocessing, device, group, console or Console(silent=True))
    if frozen is None:
        return None
    try:
        rows = frozen.rows([network.stages[-1]], samples, preprocessing.of_batch, "evaluation", {})
    except UserError:  # no room, or values that are not finite, which the caller reports
        return None
    return local_batches(rows, samples.labels, BATCH, device, group)


def outputs_of(
    run: Runner, preprocessing: Preprocessing, samples: Samples, pixels: Batches, group: ProcessGroup
) -> Outputs:
    """Uncalibrated outputs for the samples, from their features where these are kept, else from `pixels`."""
    if isinstance(run, TorchRunner):
        features = feature_batches(run.network, preprocessing, samples, run.device, group)
        if features is not None:
            return answer(partial(finite_scores, run.scores_of_features), features, stored, group)
    return answer(partial(finite_scores, run.scores), pixels, lambda b: preprocessing.crop(b.pixels, b.shapes), group)
