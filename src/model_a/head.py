"""From an image embedding to a sentence embedding: the linear probe, and heads that start as it."""

from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import nn

from src.metrics import avg_cos
from src.model_a.recipe import HEADS, HeadOptions

N_OUT = 384
# for unit rows: from next to none to almost the mean
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
HIDDEN = 1024  # of the wide head; at least 2 * N_OUT, so that its start can be the probe


class Head(nn.Module):
    """Equations 1-3: n1 = LN1(FC1 e), n2 = LN2(FC2 n1), a n1 + (1 - a) n2.

    From (n, width) to (n, n_out). `activation` stands between n1 and FC2 (the paper has none);
    the mix a starts at `mix` and is learned unless `learn_mix` is off.
    """

    def __init__(
        self,
        width: int,
        n_out: int = N_OUT,
        *,
        activation: str = "none",
        mix: float = 0.5,
        learn_mix: bool = True,
    ):
        super().__init__()
        self.fc1 = nn.Linear(width, n_out)
        self.norm1 = nn.LayerNorm(n_out)
        self.activation = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(n_out, n_out)
        self.norm2 = nn.LayerNorm(n_out)

        # kept as a logit, so that a stays in (0, 1)
        logit = torch.logit(torch.tensor(float(mix)), eps=1e-6)
        self.mix = nn.Parameter(logit, requires_grad=learn_mix)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        first = self.norm1(self.fc1(embedding))
        second = self.norm2(self.fc2(self.activation(first)))
        a = torch.sigmoid(self.mix)
        return a * first + (1 - a) * second


class Wide(nn.Module):
    """The head of the competition's first place, from (n, width) to (n, n_out).

    Linear, BatchNorm, ReLU, Linear.
    """

    def __init__(self, width: int, n_out: int = N_OUT, *, hidden: int = HIDDEN):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.norm1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, n_out)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.norm1(self.fc1(embedding))))


# --- the linear probe ---


def ridge(
    embeddings: np.ndarray, targets: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (d, 384) and bias (384,) float32 of a ridge regression, solved in float64.

    The intercept is not penalized.
    """
    return _solve(_moments(embeddings, targets), penalty)


class _Moments(NamedTuple):
    """All that a ridge needs of its rows: x'x (d, d) and x'y (d, 384), centered, and the means."""

    gram: np.ndarray
    product: np.ndarray
    x_mean: np.ndarray
    y_mean: np.ndarray


def _moments(embeddings: np.ndarray, targets: np.ndarray) -> _Moments:
    # in float64: the smallest penalty leaves the solution to the smallest eigenvalues
    x = embeddings.astype(np.float64)
    y = targets.astype(np.float64)
    x_mean = x.mean(axis=0)
    y_mean = y.mean(axis=0)

    x = x - x_mean
    return _Moments(x.T @ x, x.T @ (y - y_mean), x_mean, y_mean)


def _solve(moments: _Moments, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    penalized = moments.gram + penalty * np.eye(len(moments.gram))
    weight = np.linalg.solve(penalized, moments.product)
    bias = moments.y_mean - moments.x_mean @ weight
    return weight.astype(np.float32), bias.astype(np.float32)


def probe(
    embeddings: np.ndarray, targets: np.ndarray, *, fit: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear probe: the ridge over rows `fit` whose penalty scores best on rows `held_out`.

    Returns its weight (d, 384), its bias (384,) and that penalty.
    """
    # one pass over the rows serves every penalty
    moments = _moments(embeddings[fit], targets[fit])
    probes = [(*_solve(moments, penalty), penalty) for penalty in RIDGES]

    def score(candidate: tuple[np.ndarray, np.ndarray, float]) -> float:
        weight, bias, _ = candidate
        return avg_cos(targets[held_out], embeddings[held_out] @ weight + bias)

    return max(probes, key=score)


# --- heads ---


def build(kind: str, width: int, **options: Unpack[HeadOptions]) -> Head | Wide | nn.Linear:
    """A head of `kind` with random weights, from (n, width) to (n, 384).

    `options` are those of `Head`. Raises ValueError for an unknown kind.
    """
    if kind not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {kind!r}")
    if kind == "linear":
        return nn.Linear(width, N_OUT)
    if kind == "wide":
        return Wide(width, N_OUT)
    return Head(width, **options)


def start(
    kind: str,
    embeddings: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    **options: Unpack[HeadOptions],
) -> Head | Wide | nn.Linear:
    """A head of `kind` that predicts, up to length, what the probe `weight`, `bias` predicts.

    For rows like `embeddings` (n, d). FC1 is the probe, scaled so that its outputs have the
    spread that a norm layer gives; `options` are those of `Head`.
    """
    head = build(kind, len(weight), **options)
    prediction = embeddings @ weight + bias
    if isinstance(head, Wide):
        return _start_wide(head, prediction, weight, bias)

    # rows leave a norm layer with spread 1, so FC1 is scaled to that: the norm then changes little
    scale = prediction.std()
    with torch.no_grad():
        if isinstance(head, nn.Linear):
            _copy(head, weight / scale, bias / scale)
        else:
            _copy(head.fc1, weight / scale, bias / scale)
            _start_second_layer(head, prediction / scale)
    return head


def _start_second_layer(head: Head, prediction: np.ndarray) -> None:
    """FC2 as the identity, or, behind an activation, the least-squares way back from it."""
    nn.init.eye_(head.fc2.weight)
    nn.init.zeros_(head.fc2.bias)
    if isinstance(head.activation, nn.Identity):
        return

    # the rows as they come out of the activation, and the way back to what went in
    first = head.norm1(torch.from_numpy(prediction))
    activated = head.activation(first).numpy()
    weight, bias = ridge(activated, first.numpy(), penalty=0.01 * len(prediction))
    _copy(head.fc2, weight, bias)


@torch.no_grad()
def _start_wide(head: Wide, prediction: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Wide:
    """relu(z) - relu(-z) = z: two hidden units carry each output of the probe, standardized.

    The other hidden units start without effect.
    """
    n_out = len(bias)
    mean = prediction.mean(axis=0)
    spread = prediction.std(axis=0) + 1e-6

    # FC1 gives z and -z, as BatchNorm would leave them
    standard = weight / spread
    offset = (bias - mean) / spread
    head.fc1.weight[: 2 * n_out] = torch.from_numpy(np.concatenate([standard.T, -standard.T]))
    head.fc1.bias[: 2 * n_out] = torch.from_numpy(np.concatenate([offset, -offset]))

    # FC2 joins the two and puts spread and mean back
    back = torch.from_numpy(np.diag(spread) / prediction.std())
    head.fc2.weight.zero_()
    head.fc2.weight[:, : 2 * n_out] = torch.cat([back, -back], dim=1)
    head.fc2.bias.copy_(torch.from_numpy(mean / prediction.std()))
    return head


def _copy(layer: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
    layer.bias.copy_(torch.from_numpy(bias))
