"""Equations 1-3, the probe in closed form, and heads that start as their probe."""

import numpy as np
import pytest
import torch

from src import metrics
from src.model_a import head


def test_head_is_equations_1_to_3():
    torch.manual_seed(0)
    paper = head.Head(5, 4)
    e = torch.randn(3, 5)

    def norm(x):
        return (x - x.mean(1, keepdim=True)) / torch.sqrt(
            x.var(1, unbiased=False, keepdim=True) + 1e-5
        )

    first = norm(e @ paper.fc1.weight.T + paper.fc1.bias)
    second = norm(first @ paper.fc2.weight.T + paper.fc2.bias)
    with torch.no_grad():
        paper.mix.fill_(np.log(3))  # a = sigmoid(log 3) = 3/4
    torch.testing.assert_close(paper(e), 0.75 * first + 0.25 * second, atol=1e-5, rtol=1e-5)


def test_the_mix_starts_where_asked_and_can_be_fixed():
    fixed = head.Head(5, mix=0.8, learn_mix=False)
    assert torch.sigmoid(fixed.mix).item() == pytest.approx(0.8) and not fixed.mix.requires_grad
    assert head.Head(5).mix.requires_grad and torch.sigmoid(
        head.Head(5).mix
    ).item() == pytest.approx(0.5)


def test_ridge_without_penalty_recovers_a_linear_map():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4)).astype(np.float32)
    w = rng.standard_normal((4, 3))
    weight, bias = head.ridge(x, x @ w + 2, 1e-9)
    assert weight == pytest.approx(w, abs=1e-4) and bias == pytest.approx([2, 2, 2], abs=1e-4)


def test_the_probe_takes_the_penalty_that_is_best_on_the_held_out_rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 30)).astype(np.float32)
    y = np.concatenate([x[:, :3], np.zeros((60, 381))], axis=1).astype(
        np.float32
    ) + 2 * rng.standard_normal((60, 384)).astype("f")
    fit = np.arange(40)
    held_out = np.arange(40, 60)
    weight, bias, penalty = head.probe(x, y, fit=fit, held_out=held_out)
    scores = {
        p: metrics.avg_cos(y[held_out], x[held_out] @ w + b)
        for p in head.RIDGES
        for w, b in [head.ridge(x[fit], y[fit], p)]
    }
    assert penalty == max(scores, key=scores.get) and penalty > min(head.RIDGES)
    assert weight == pytest.approx(head.ridge(x[fit], y[fit], penalty)[0])


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("linear", "none"),
        ("paper", "none"),
        ("paper", "tanh"),
        ("paper", "gelu"),
        ("paper", "relu"),
        ("wide", "none"),
    ],
)
def test_a_head_starts_as_its_probe(kind, activation):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 384)).astype(np.float32)
    bias = rng.standard_normal(384).astype(np.float32)
    x = rng.standard_normal((500, 64)).astype(np.float32)
    made = head.start(kind, x, weight, bias, activation=activation)
    with torch.no_grad():
        out = made.eval()(torch.from_numpy(x)).numpy()
        trains = made.train()(torch.from_numpy(x)).numpy()
    probe = x @ weight + bias
    for prediction in (out, trains):  # BatchNorm by its running and by its batch's statistics
        cosine = (
            (prediction * probe).sum(1)
            / np.linalg.norm(prediction, axis=1)
            / np.linalg.norm(probe, axis=1)
        )
        assert cosine.mean() > (0.99 if activation in ("none", "tanh") else 0.9)


def test_an_unknown_head_is_refused_by_name():
    with pytest.raises(ValueError, match="head must be one of linear, paper, wide, got 'tall'"):
        head.build("tall", 5)
