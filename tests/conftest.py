"""`./run_tests.sh --endurance` runs tests/endurance (an hour and more) in place of the tests."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.toy_pipeline import write_toy_pipeline

ENDURANCE = Path(__file__).parent / "endurance"


def pytest_addoption(parser):
    parser.addoption(
        "--endurance", action="store_true", help="the tests of tests/endurance, which take an hour"
    )


def pytest_ignore_collect(collection_path, config):
    enduring = collection_path == ENDURANCE or ENDURANCE in collection_path.parents
    if collection_path.suffix == ".py" and enduring != config.getoption("--endurance"):
        return True
    return None


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """clip/, clip2/, train/, test/ and a trained output/, to be read alone."""
    from tests.helpers.trained_output import write_output  # loads torch

    return write_output(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator of the test's own: no test changes what another one draws."""
    return np.random.default_rng(0)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Five toy notebooks, a training folder and params.yaml that knows both."""
    return write_toy_pipeline(tmp_path)
