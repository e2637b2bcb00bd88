"""From logits to calibrated probabilities: a temperature that falls with the share of the text that is known.

probabilities = softmax(z / (T · k^e)), z (labels,) the logits, T > 0 and e ≥ 0 fitted, k in [0.1, 1] the length of the
text's sparse features over √2, the length they have where every term is known (`features`). Unknown terms shorten the
features and so the logits, which tells texts of no route; among texts of the routes it makes right answers look unsure.
With e = 0 this is temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .features import Scalars, Sparse
from .head import Labels, log_sum_exp

LEAST_KNOWN = 0.1
# A text of which less is known is not judged by its words. On CLINC150 val with 3 to 150 routes of 5 or more examples
# that is 0 to 0.7 % of the texts in scope (10 % with 3 routes of one example), and 95 % or more of random letters.
SPEAKS_FROM = 0.35
TEMPERATURES = (0.05, 20.0)
EXPONENTS = (0.0, 3.0)
ENOUGH_LOGITS = 4_000_000  # more rows × labels tell the two numbers no better


@dataclass(frozen=True, slots=True)
class Confidence:
    """T and e."""

    temperature: float
    exponent: float

    def scaled(self, logits: Scalars, known: Scalars | float) -> Scalars:
        """z / (T · k^e) of `logits` (…, labels); `known` is k (…, 1) or one number."""
        scaled: Scalars = logits / (self.temperature * known**self.exponent)
        return scaled


def known_share(sparse: Sparse) -> float:
    """k"""
    return min(1.0, max(LEAST_KNOWN, math.sqrt(sparse.values @ sparse.values / 2)))


def fit_confidence(logits: Scalars, known: Scalars, targets: Labels) -> Confidence:
    """T and e with the least negative log-likelihood of `targets` (rows,), given `logits` (rows, labels).

    `known` (rows,). One further row is assumed that could be any label, so that rows without a single error do not
    end in certainty (after Platt 1999), and ½ e² is added, so that few rows leave e near 0. T = 1, e = 0 without rows
    or choice.
    """
    from scipy.optimize import minimize

    if not len(targets) or logits.shape[1] == 1:
        return Confidence(1.0, 0.0)
    step = max(1, logits.size // ENOUGH_LOGITS)
    logits, known, targets = logits[::step], known[::step, None], targets[::step]

    def loss(parameters: Scalars) -> float:
        scaled = Confidence(math.exp(parameters[0]), parameters[1]).scaled(logits, known)
        log_shares = scaled - log_sum_exp(scaled)[:, None]
        own = log_shares[np.arange(len(targets)), targets]
        return float(parameters[1] ** 2 / 2 - own.sum() - log_shares.mean())

    bounds = [(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])), EXPONENTS]
    found = minimize(loss, [0.0, 0.5], method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-4, "fatol": 1e-6})
    return Confidence(math.exp(found.x[0]), float(found.x[1]))
