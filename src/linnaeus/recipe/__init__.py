"""Recipes: everything that changes a result, as validated tables (`spec`) that are read from TOML (`load`)."""

from linnaeus.recipe.load import (
    RECIPES,
    load_recipe,
    override,
    parse_epochs,
    parse_setting,
    parse_toml,
    recipe_names,
    recipe_text,
    validate,
    without_recipe,
)
from linnaeus.recipe.spec import Phase, Recipe
from linnaeus.recipe.tables import Augment, Constant, Cosine, OneCycle, Plateau, Step

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
    "parse_epochs",
    "parse_setting",
    "parse_toml",
    "recipe_names",
    "recipe_text",
    "validate",
    "without_recipe",
]
