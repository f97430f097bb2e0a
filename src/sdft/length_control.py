"""Length-controlled win rates: how often a model would win if its replies were as long as the reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RIDGE = 0.1
"""Weight of half the squared coefficients in the fit: next to nothing beside hundreds of rows, but it keeps them
small where a model always wins, or few rows can be told apart by length alone."""


def length_controlled(
    preferences: Sequence[float],
    reply_lengths: Sequence[int],
    reference_lengths: Sequence[int],
    difficulty: Sequence[float] | None = None,
) -> list[float]:
    """One value a row, whose mean is the length-controlled win rate of a model against one reference.

    `preferences` are 1 where the reply was preferred, 0 where the reference was, 0.5 for a tie; lengths are in
    characters. The method is that of Dubois et al. 2024 (arXiv 2404.04475), a logistic regression

        logit p = theta + phi * tanh((len(reply) - len(reference)) / std) + psi * difficulty

    in which `std` is the standard deviation of the length differences over all rows; the win rate is the mean of p
    with the length term set to zero. What is as in the paper: the three terms, tanh, the division by the standard
    deviation without taking off the mean, and that p is fitted to preferences that may be fractions. What is not:

    - there, `difficulty` (gamma in the paper) was estimated once over all models of the AlpacaEval leaderboard. It
      belongs to that reference and annotator; without it the term is left out, as in `length_controlled_minimal`
      of the package alpaca_eval.
    - there, an L1 penalty is chosen by cross-validation, and phi is drawn towards that of two gamed baselines. Here
      the penalty is a weak, fixed ridge, which some hundreds of rows outweigh.

    Each row's value is the win rate plus the row's influence on it (the infinitesimal jackknife), so the values'
    spread gives the interval of the win rate and, row by row, that of the difference of two models; a single value
    may lie outside 0 and 1. A fit needs rows; none gives none.
    """
    import numpy as np

    if not preferences:
        return []
    wins = np.asarray(preferences, dtype=np.float64)
    longer = np.asarray(reply_lengths, dtype=np.float64) - np.asarray(reference_lengths, dtype=np.float64)
    spread = longer.std(ddof=1) if len(longer) > 1 else 0.0
    length = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    hard = np.zeros((len(wins), 0)) if difficulty is None else np.asarray(difficulty, dtype=np.float64)[:, None]
    without = np.hstack([np.ones((len(wins), 1)), np.zeros((len(wins), 1)), hard])
    seen = without.copy()
    seen[:, 1] = length
    weights, hessian = _fit(seen, wins)
    even = _logistic(without @ weights)
    slope = (without * (even * (1 - even))[:, None]).mean(axis=0)
    errors = seen * (wins - _logistic(seen @ weights))[:, None] - RIDGE * weights / len(wins)
    influence = len(wins) * errors @ np.linalg.solve(hessian, slope)
    values: list[float] = (even + influence).tolist()
    return values


def _fit(features: np.ndarray[Any, Any], wins: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """The coefficients, and the Hessian of the penalised negative log-likelihood at them."""
    import numpy as np
    from scipy.optimize import minimize

    def loss(weights: Any) -> float:
        scores = features @ weights
        return float((np.logaddexp(0, scores) - wins * scores).sum() + RIDGE / 2 * weights @ weights)

    def gradient(weights: Any) -> Any:
        return features.T @ (_logistic(features @ weights) - wins) + RIDGE * weights

    def hessian(weights: Any) -> Any:
        p = _logistic(features @ weights)
        return (features * (p * (1 - p))[:, None]).T @ features + RIDGE * np.eye(len(weights))

    start = np.zeros(features.shape[1])
    share = min(max(float(wins.mean()), 1e-3), 1 - 1e-3)
    start[0] = math.log(share / (1 - share))
    found = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9})
    return found.x, hessian(found.x)


def _logistic(scores: Any) -> Any:
    from scipy.special import expit

    return expit(scores)
