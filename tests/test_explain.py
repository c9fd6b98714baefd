"""Why a prediction went wrong, in a sentence for each."""

import numpy as np

from src.model_b import explain
from tests.helpers.toy_library import VALUES, take


def test_each_failure_is_told_in_a_sentence():
    index = np.array([[0, 1, 2], [9, 1, 8], [9, 8, 2], [9, 8, 7]])
    best_value = np.array([0.2, 0.9, 0.9, 0.9], np.float32)
    said = explain.failure_reasons(
        index, take, VALUES[:4], (best_value, np.arange(4)), range(4), near=2
    )
    reach = VALUES[:4] @ VALUES[9]
    assert said == [
        "nothing near in the datastore: the nearest visible prompt (0.20) is far, 0.90 is usual",
        "outvoted: the nearest visible prompt (0.90) is number 2, the others pull away",
        f"ranked low: the nearest visible prompt (0.90) is number 3, the first has {reach[2]:.2f}",
        "ranked low: the nearest visible prompt (0.90) is not among the first 3, "
        f"the first has {reach[3]:.2f}",
    ]


def test_a_hub_is_first_for_more_than_five_times_as_many_as_is_usual():
    def said(copies: int, best: int) -> str:
        index = np.concatenate([np.tile([9, 8], (copies, 1)), 10 + np.arange(20).reshape(10, 2)])
        n = len(index)
        return explain.failure_reasons(
            index,
            take,
            VALUES[np.zeros(n, int)],
            (np.full(n, 0.9), np.full(n, best)),
            [0],
            near=1,
        )[0]

    assert said(6, 7) == "a hub: the first neighbor is among the first 1 of 6 queries, 1 is usual"
    assert said(5, 7).startswith("ranked low") and said(6, 9).startswith("outvoted")


def test_each_failure_has_its_reason():
    truth = VALUES[:4]
    index = np.array([[0, 1, 2], [9, 1, 8], [9, 8, 2], [9, 8, 7]])
    best_value = np.array([0.2, 0.9, 0.9, 0.9], np.float32)
    best_row = np.array([0, 1, 2, 3])
    said = explain.failure_reasons(index, take, truth, (best_value, best_row), [0, 1, 3], near=2)
    assert (
        said[0].startswith("nothing near in the datastore")
        and said[1].startswith("outvoted")
        and said[2].startswith("ranked low")
    )
    many = np.concatenate([np.tile([9, 8, 7], (40, 1)), 10 + np.arange(30).reshape(10, 3)])
    alike = VALUES[np.zeros(50, int)], (np.full(50, 0.9), np.full(50, 7))
    said = explain.failure_reasons(many, take, *alike, [0], near=1)
    assert said[0].startswith("a hub: the first neighbor is among the first 1 of 40 queries")
