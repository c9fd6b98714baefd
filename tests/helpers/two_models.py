"""The predictions of two models, one nearer to the truth than the other, made up."""

import numpy as np

from src.metrics import l2_normalize

_random = np.random.default_rng(0)

TRUTH = l2_normalize(_random.standard_normal((400, 8)).astype(np.float32))
A = l2_normalize(TRUTH + 0.25 * _random.standard_normal((400, 8)).astype(np.float32))
B = l2_normalize(TRUTH + 0.5 * _random.standard_normal((400, 8)).astype(np.float32))
FOLD = np.arange(400) % 4
