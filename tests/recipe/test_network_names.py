"""The names of networks that are checked before torch is imported."""

from linnaeus.models import MODELS
from linnaeus.recipe.networks import NETWORKS


def test_the_names_are_those_of_the_networks():
    assert tuple(MODELS) == NETWORKS
