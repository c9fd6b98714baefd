"""Members are read by name, meet by id, and are checked to be paired."""

import numpy as np
import pytest

from src import artifacts, paths
from src.ensemble.members import check_pairing, load_members, member_names
from src.metrics import l2_normalize
from tests.helpers.two_models import FOLD, TRUTH, A, B


def test_shuffled_ids_are_noticed():
    members = {"a": A, "b": B}
    assert check_pairing(TRUTH, members, FOLD)["errors"].min() > 10
    wrong = A.copy()
    wrong[FOLD == 1] = np.roll(
        A[FOLD == 1], 1, axis=0
    )  # in one fold alone each row is that of its neighbour
    with pytest.raises(
        ValueError,
        match=r"1 of 8 blocks of rows fit their own partner no better.*a in block 1: .*shuffled",
    ):
        check_pairing(TRUTH, {"a": wrong, "b": B}, FOLD)
    three = ", ".join(f"'x in block {f}: [^']*'" for f in range(3))
    with pytest.raises(ValueError, match=rf"^8 of 8 blocks .*, e.g. \[{three}\]"):
        check_pairing(TRUTH, {"x": np.roll(A, 4, axis=0), "y": np.roll(B, 4, axis=0)}, FOLD)
    constant = np.tile(l2_normalize(TRUTH.mean(axis=0, keepdims=True)), (len(TRUTH), 1))
    with pytest.raises(ValueError, match="knows nothing of the image"):
        check_pairing(TRUTH, {"mean": constant})


def test_a_handful_of_rows_cannot_tell_whether_they_were_shuffled():
    check_pairing(A[:1], {"b": B[:1]})
    check_pairing(TRUTH[:9], {"a": A[:9][::-1]})
    with pytest.raises(ValueError, match="1 of 1 blocks of rows"):
        check_pairing(TRUTH[:10], {"a": A[:10][::-1]})


def test_the_table_of_the_pairing_by_hand():
    table = check_pairing(TRUTH, {"a": 3 * A, "b": B}, FOLD)
    assert table.columns == ["member", "block", "contrast", "errors"]
    assert table.select("member", "block").rows() == [(name, f) for name in "ab" for f in range(4)]
    truth = TRUTH[FOLD == 2]
    b = B[FOLD == 2]
    own = ((truth - truth.mean(axis=0)) * b).sum(axis=1)
    assert table.row(6)[2:] == pytest.approx((own.mean(), own.mean() / (own.std() / 10)), rel=1e-4)
    assert check_pairing(TRUTH, {"a": A})["block"].to_list() == [0]


def test_members_are_read_by_name_and_meet_by_id(tmp_path):
    ids = [f"row {i}" for i in range(len(A))]
    assert member_names(tmp_path) == (["model_a"], ["model_b"])
    artifacts.save_json(tmp_path / paths.MEMBERS_A, {"members": ["model_a", "wide"]})
    for name, x in (("model_a", A), ("wide", -A)):
        artifacts.save_embeddings(tmp_path / paths.OOF.format(variant=name), ids[::-1], x[::-1])
    artifacts.save_embeddings(tmp_path / paths.OOF_B.format(member="model_b"), ids, B)
    found = load_members(tmp_path, ids, "oof")
    assert list(found) == ["model_a", "wide", "model_b"]
    for name, x in (("model_a", A), ("wide", -A), ("model_b", B)):
        np.testing.assert_array_equal(found[name], x)
    tests = (
        paths.TEST.format(variant="model_a"),
        paths.TEST.format(variant="wide"),
        paths.TEST_B.format(member="model_b"),
    )
    for base, x in zip(tests, (B, -B, A), strict=True):
        artifacts.save_embeddings(tmp_path / base, ids, x)
    assert [float(x[0, 0]) for x in load_members(tmp_path, ids, "test").values()] == [
        B[0, 0],
        -B[0, 0],
        A[0, 0],
    ]
    artifacts.save_json(tmp_path / paths.MEMBERS_B, {"members": ["wide"]})
    with pytest.raises(ValueError, match="share the names .'wide'."):
        member_names(tmp_path)
