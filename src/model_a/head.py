"""From an image embedding to a sentence embedding: the linear probe in closed form, and heads that start as that probe."""

import numpy as np
import torch
from torch import nn

from src.metrics import avg_cos

N_OUT = 384
RIDGES = (
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
    300.0,
)  # for unit rows: from next to none to almost the mean
ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
HEADS = ("linear", "paper", "wide")
HIDDEN = 1024  # of the wide head; at least 2 * N_OUT, so that its start can be the probe


class Head(nn.Module):
    """Equations 1-3: n1 = LN1(FC1 e), n2 = LN2(FC2 n1), a n1 + (1 - a) n2, from (n, width) to (n, n_out).

    `activation` stands between n1 and FC2 (the paper has none); the mix a starts at `mix` and is learnt unless `learn_mix` is off.
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
        self.fc1, self.norm1 = nn.Linear(width, n_out), nn.LayerNorm(n_out)
        self.activation = ACTIVATIONS[activation]()
        self.fc2, self.norm2 = nn.Linear(n_out, n_out), nn.LayerNorm(n_out)
        self.mix = nn.Parameter(
            torch.logit(torch.tensor(float(mix)), eps=1e-6), requires_grad=learn_mix
        )  # a stays in (0, 1)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        first = self.norm1(self.fc1(embedding))
        second = self.norm2(self.fc2(self.activation(first)))
        a = torch.sigmoid(self.mix)
        return a * first + (1 - a) * second


class Wide(nn.Module):
    """The head of the competition's first place: Linear, BatchNorm, ReLU, Linear, from (n, width) to (n, n_out)."""

    def __init__(self, width: int, n_out: int = N_OUT, *, hidden: int = HIDDEN):
        super().__init__()
        self.fc1, self.norm1, self.fc2 = (
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, n_out),
        )

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.norm1(self.fc1(embedding))))


def ridge(
    embeddings: np.ndarray, targets: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (d, 384) and bias (384,) float32 of a ridge regression with an unpenalised intercept, solved in float64."""
    return _solve(*_moments(embeddings, targets), penalty)


def _moments(embeddings: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    x, y = embeddings.astype(np.float64), targets.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x = x - x_mean
    return x.T @ x, x.T @ (y - y_mean), x_mean, y_mean


def _solve(
    gram: np.ndarray, product: np.ndarray, x_mean: np.ndarray, y_mean: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    weight = np.linalg.solve(gram + penalty * np.eye(len(gram)), product)
    return weight.astype(np.float32), (y_mean - x_mean @ weight).astype(np.float32)


def probe(
    embeddings: np.ndarray, targets: np.ndarray, *, fit: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear probe: the ridge over rows `fit` whose penalty scores best on `held_out`; weight, bias and that penalty."""
    moments = _moments(embeddings[fit], targets[fit])
    tried = [(*_solve(*moments, penalty), penalty) for penalty in RIDGES]
    return max(
        tried,
        key=lambda found: avg_cos(targets[held_out], embeddings[held_out] @ found[0] + found[1]),
    )


def build(kind: str, width: int, **options: object) -> nn.Module:
    """A head of `kind` with random weights, from (n, width) to (n, 384); `options` are those of `Head`."""
    if kind not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {kind!r}")
    return (
        {"linear": nn.Linear, "wide": Wide}[kind](width, N_OUT)
        if kind != "paper"
        else Head(width, **options)
    )


def start(
    kind: str, embeddings: np.ndarray, weight: np.ndarray, bias: np.ndarray, **options: object
) -> nn.Module:
    """A head of `kind` that predicts what the probe `weight`, `bias` predicts, up to length, for rows like `embeddings`.

    FC1 is the probe, scaled so that its outputs have the spread that a norm layer gives; `options` are those of `Head`.
    """
    head, first = build(kind, len(weight), **options), embeddings @ weight + bias
    if kind == "wide":
        return _start_wide(head, first, weight, bias)
    with torch.no_grad():
        _copy(head if kind == "linear" else head.fc1, weight / first.std(), bias / first.std())
        if kind == "paper":
            _start_second(head, first)
    return head


def _start_second(head: Head, first: np.ndarray) -> None:
    """FC2 as the identity, or, behind an activation, the least-squares way back from it."""
    nn.init.eye_(head.fc2.weight)
    nn.init.zeros_(head.fc2.bias)
    if not isinstance(head.activation, nn.Identity):
        n1 = head.norm1(torch.from_numpy(first / first.std()))
        weight, bias = ridge(head.activation(n1).numpy(), n1.numpy(), penalty=0.01 * len(first))
        _copy(head.fc2, weight, bias)


@torch.no_grad()
def _start_wide(head: Wide, first: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Wide:
    """relu(z) - relu(-z) = z: two standardised units an output carry the probe; the rest start without effect."""
    n_out, mean, spread = len(bias), first.mean(axis=0), first.std(axis=0) + 1e-6
    standard, offset = weight / spread, (bias - mean) / spread
    head.fc1.weight[: 2 * n_out] = torch.from_numpy(np.concatenate([standard.T, -standard.T]))
    head.fc1.bias[: 2 * n_out] = torch.from_numpy(np.concatenate([offset, -offset]))
    back = torch.from_numpy(np.diag(spread) / first.std())
    head.fc2.weight.zero_()
    head.fc2.weight[:, : 2 * n_out] = torch.cat([back, -back], dim=1)
    head.fc2.bias.copy_(torch.from_numpy(mean / first.std()))
    return head


def _copy(layer: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
    layer.bias.copy_(torch.from_numpy(bias))
