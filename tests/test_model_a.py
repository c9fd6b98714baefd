"""Equations 1-3, the probe, and a fit on a real small tower."""

import numpy as np
import pytest
import torch
from torch import nn

from src import model_a, prompts


def test_head_is_equations_1_to_3():
    torch.manual_seed(0)
    head = model_a.Head(5, 4)
    e = torch.randn(3, 5)

    def norm(x):
        return (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-5)

    first = norm(e @ head.fc1.weight.T + head.fc1.bias)
    second = norm(first @ head.fc2.weight.T + head.fc2.bias)
    with torch.no_grad():
        head.mix.fill_(np.log(3))  # a = sigmoid(log 3) = 3/4
    torch.testing.assert_close(head(e), 0.75 * first + 0.25 * second, atol=1e-5, rtol=1e-5)


def test_ridge_without_penalty_recovers_a_linear_map():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((4, 3))
    weight, bias = model_a.ridge(x, x @ w + 2, 1e-9)
    assert weight == pytest.approx(w, abs=1e-4) and bias == pytest.approx([2, 2, 2], abs=1e-4)


@pytest.mark.parametrize("kind", ["linear", "paper"])
def test_a_head_starts_as_its_probe(kind):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((6, 384)).astype(np.float32), np.zeros(384, np.float32)
    x = rng.standard_normal((9, 6)).astype(np.float32)
    with torch.no_grad():
        out = model_a.start_head(kind, weight, bias, 2.0)(torch.from_numpy(x)).numpy()
    probe = x @ weight
    cosine = (out * probe).sum(1) / np.linalg.norm(out, axis=1) / np.linalg.norm(probe, axis=1)
    assert cosine.min() > 0.99


class Visual(nn.Module):
    """A timm tower in open_clip's form: `trunk` and `head`."""

    def __init__(self):
        super().__init__()
        import timm

        torch.manual_seed(0)
        self.trunk = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        self.head = nn.Linear(self.trunk.num_features, 8)

    def forward(self, x):
        return self.head(self.trunk(x))


def test_the_cut_tower_equals_the_whole_one_and_only_its_end_trains():
    visual = Visual().eval()
    x = torch.randn(2, 3, 64, 64)
    whole = nn.functional.normalize(visual(x), dim=-1)
    tower = model_a.Tower(visual, 2)
    torch.testing.assert_close(tower(tower.frozen(x)), whole, atol=1e-5, rtol=1e-4)
    names = [name.split(".") for name, p in tower.named_parameters() if p.requires_grad]
    trains = {name[2] + name[3] for name in names if "blocks" in name}
    assert trains == {"blocks5", "blocks6"}
    assert not any(p.requires_grad for p in model_a.Tower(visual, 0).parameters())
    with pytest.raises(ValueError, match="trainable_blocks 99"):
        model_a.Tower(visual, 99)


def test_parameter_groups_have_the_two_learning_rates():
    groups = model_a.parameter_groups(nn.Linear(3, 3), model_a.Head(3), lr_vision=1e-5, lr_fc=1e-3, weight_decay=0.1)
    assert {(g["name"], g["lr"]) for g in groups} == {("tower", 1e-5), ("head", 1e-3)}
    assert all(g["weight_decay"] == (0.1 if g["params"][0].ndim > 1 else 0) for g in groups)


def test_a_recipe_refuses_an_unknown_head():
    with pytest.raises(ValueError, match="head must be linear or paper, got 'wide'"):
        model_a.Recipe("wide", 1, 8, 1e-4, 1e-3, 0, 1)


def test_synonyms_and_shuffling_change_prompts_the_same_way_for_a_seed():
    texts = ["a beautiful painting of a small house", "xyzzy plugh"]
    first = prompts.augment(texts, synonyms=True, shuffle=False, seed=1)
    assert first == prompts.augment(texts, synonyms=True, shuffle=False, seed=1)
    assert first[0] != texts[0] and first[1] == texts[1]
    shuffled = prompts.augment(texts, synonyms=False, shuffle=True, seed=1)
    assert shuffled[0] != texts[0] and sorted(shuffled[0].split()) == sorted(texts[0].split())


def test_targets_are_unit_rows_in_order_and_those_of_the_known_model():
    rows = prompts.encode(["a fox", "a fox in the snow", "a fox"])
    assert rows.shape == (3, 384) and rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert (rows[0] == rows[2]).all() and rows[0] @ rows[1] > 0.7
    assert prompts.encode([]).shape == (0, 384)
