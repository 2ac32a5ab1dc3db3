"""A recipe: everything that changes a result, as validated models (`spec`) read from strict TOML (`load`)."""

from linnaeus.recipe.load import (
    RECIPES,
    load_recipe,
    override,
    parse_setting,
    parse_toml,
    recipe_names,
    recipe_text,
    validate,
)
from linnaeus.recipe.spec import Augment, Constant, Cosine, OneCycle, Phase, Plateau, Recipe, Step

__all__ = [
    "RECIPES",
    "Augment",
    "Constant",
    "Cosine",
    "OneCycle",
    "Phase",
    "Plateau",
    "Recipe",
    "Step",
    "load_recipe",
    "override",
    "parse_setting",
    "parse_toml",
    "recipe_names",
    "recipe_text",
    "validate",
]
