"""Recipes for tests: the defaults of notebook 02, made small."""

from src.model_a.recipe import Recipe
from src.runner import params

NOTEBOOK = params.NOTEBOOKS / "02_train_model_a.ipynb"
# for a toy tower: two blocks that train at a low rate, every row once an epoch, no average
SMALL = {"trainable_blocks": 2, "lr_vision": 1e-3, "sample_duplicates": False, "ema": 0.0}


def small_recipe(**changes: object) -> Recipe:
    """The notebook's defaults with `SMALL` and then `changes` in them."""
    defaults = {name: value.default for name, value in params.declared(NOTEBOOK).items()}
    return Recipe.from_parameters(defaults | SMALL | changes)
