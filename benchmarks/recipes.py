"""Model A's recipe as notebook 02 declares it."""

from src.model_a.recipe import Recipe
from src.runner import params

NOTEBOOK = params.NOTEBOOKS / "02_train_model_a.ipynb"


def parameters() -> dict[str, object]:
    """The notebook's parameters at their defaults."""
    return {name: value.default for name, value in params.declared(NOTEBOOK).items()}


def default_recipe(**changes: object) -> Recipe:
    """The recipe of Model A with the notebook's defaults and `changes` in them."""
    return Recipe.from_parameters(parameters() | changes)
