"""What would flatter a score or spoil a submission is planted here, and must be caught."""

import numpy as np
import pytest

from src import artifacts
from src.dedup import folds
from src.dedup.similarity import nearest_across
from src.ensemble import members
from src.metrics import l2_normalize
from src.submit import submission

_constants = np.random.default_rng(0)
PROMPTS = l2_normalize(_constants.standard_normal((300, 384)).astype(np.float32))
IDS = [f"{i:09x}" for i in range(300)]


def test_near_duplicates_across_folds_show_in_the_leak_check(rng):
    doubles = l2_normalize(PROMPTS[:30] + 0.01 * rng.standard_normal((30, 384)).astype(np.float32))
    prompts = np.concatenate([PROMPTS, doubles])
    group = folds.groups(prompts, 0.7)
    assert (group[300:] == group[:30]).all()
    by_group = group % 3
    kept = np.ones(330, bool)
    honest = folds.leaks(nearest_across(prompts, by_group), by_group, kept, threshold=0.7)
    assert honest["highest"].max() < 0.7 and honest["above"].sum() == 0
    planted = by_group.copy()
    planted[300:] = (planted[300:] + 1) % 3  # each double in another fold than its original
    leaking = folds.leaks(nearest_across(prompts, planted), planted, kept, threshold=0.7)
    assert leaking["highest"].min() > 0.9 and leaking["kept_above"].sum() == 60
    assert leaking["mean_highest"].max() > honest["mean_highest"].max()


def test_ids_shuffled_between_two_artifacts_are_caught_before_the_blend(tmp_path, rng):
    a = l2_normalize(PROMPTS + 0.08 * rng.standard_normal((300, 384)).astype(np.float32))
    artifacts.save_embeddings(tmp_path / "good", IDS, a)
    artifacts.save_embeddings(
        tmp_path / "bad", rng.permutation(IDS).tolist(), a
    )  # whole, finite, every id there: nothing to see
    members.check_pairing(PROMPTS, {"a": artifacts.load_embeddings(tmp_path / "good", IDS)[1]})
    with pytest.raises(ValueError, match="ids were shuffled between two artifacts"):
        members.check_pairing(PROMPTS, {"a": artifacts.load_embeddings(tmp_path / "bad", IDS)[1]})


def nan_row(x):
    x = x.copy()
    x[7, 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("ids", "x", "message"),
    [
        (IDS, nan_row(PROMPTS), "1 rows hold NaN or infinity, e.g. row 7 .id '000000007'"),
        (IDS[:-1], PROMPTS[:-1], "1 ids missing, e.g. .'00000012b'"),
        ([*IDS[:-1], IDS[4]], PROMPTS, "1 ids occur more than once, e.g. .'000000004'"),
        (IDS, np.ascontiguousarray(PROMPTS[:, :383]), "vectors are 383 long, must be 384"),
    ],
)
def test_a_spoilt_submission_is_refused_with_counts_and_an_example(tmp_path, ids, x, message):
    submission.write(IDS, PROMPTS, tmp_path / "sample_submission")
    with pytest.raises(ValueError, match=message):
        submission.write(ids, x, tmp_path / "submission", tmp_path / "sample_submission.csv")
    assert not list(tmp_path.glob("submission.*"))
