"""Recipes: everything that changes a result, as validated tables (`spec`) that are read from TOML (`load`)."""

from linnaeus.recipe.load import load_recipe as load_recipe
from linnaeus.recipe.load import override as override
from linnaeus.recipe.load import parse_epochs as parse_epochs
from linnaeus.recipe.load import parse_setting as parse_setting
from linnaeus.recipe.load import parse_toml as parse_toml
from linnaeus.recipe.load import recipe_names as recipe_names
from linnaeus.recipe.load import recipe_text as recipe_text
from linnaeus.recipe.load import validate as validate
from linnaeus.recipe.load import without_recipe as without_recipe
from linnaeus.recipe.spec import Phase as Phase
from linnaeus.recipe.spec import Recipe as Recipe
from linnaeus.recipe.tables import Augment as Augment
from linnaeus.recipe.tables import Constant as Constant
from linnaeus.recipe.tables import Cosine as Cosine
from linnaeus.recipe.tables import OneCycle as OneCycle
from linnaeus.recipe.tables import Plateau as Plateau
from linnaeus.recipe.tables import Step as Step
