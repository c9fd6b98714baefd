"""How many bad inputs there are."""

from itertools import chain

from tests.bad_inputs.test_arrays import ARRAYS, SUBMISSIONS
from tests.bad_inputs.test_images import IMAGES
from tests.bad_inputs.test_parameters import PARAMETERS
from tests.bad_inputs.test_prompts import TEXTS
from tests.bad_inputs.test_shards import SHARDS
from tests.bad_inputs.test_tables import TABLES, TEXT_SOURCES
from tests.bad_inputs.test_weights import CHECKPOINTS, CLIPS, FOLDS


def test_there_are_at_least_200_of_them():
    families = {
        "images": IMAGES,
        "prompts": TEXTS,
        "tables": [*chain.from_iterable(TABLES.values()), *TEXT_SOURCES],
        "shards": SHARDS,
        "parameters": PARAMETERS,
        "weights": [*CLIPS, *FOLDS, *CHECKPOINTS],
        "submissions": [*ARRAYS, *SUBMISSIONS],
    }
    sizes = {family: len(cases) for family, cases in families.items()}
    assert sum(sizes.values()) >= 200 and min(sizes.values()) >= 30, sizes
