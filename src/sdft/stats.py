"""Intervals and paired differences. All intervals are 95 %.

- A rate has Wilson's score interval; a mean has a BCa bootstrap interval.
- Two models are compared row by row, joined by example id, for they answer the same questions and a paired
  difference is known better than two separate rates say. For rates: Tango's interval (Statistics in Medicine 17,
  1998), which inverts the score test behind McNemar's and keeps its coverage where few rows differ, where a paired
  bootstrap shrinks to nothing; and McNemar's exact p. For means: the bootstrap interval of the row differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from sdft.records import Comparison, Metric, Prediction, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NORMAL = NormalDist()
Z = _NORMAL.inv_cdf(0.975)
RESAMPLES = 5000

Interval = tuple[float, float]


def score(model: str, benchmark: str, metrics: Mapping[str, Metric], predictions: Iterable[Prediction]) -> list[Score]:
    """One score for each metric that any row has a value of; rows without it are left out of that metric."""
    rows = list(predictions)
    scores = []
    for name, metric in metrics.items():
        values = [row.values[name] for row in rows if name in row.values]
        if values:
            value, (low, high) = estimate(metric, values)
            scores.append(
                Score(
                    model=model,
                    benchmark=benchmark,
                    metric=name,
                    value=value,
                    n=len(values),
                    low=low,
                    high=high,
                    kind=metric.kind,
                    better=metric.better,
                )
            )
    return scores


def estimate(metric: Metric, values: Sequence[float]) -> tuple[float, Interval]:
    """Mean and interval of at least one value; values of a rate are 0 or 1."""
    interval = wilson(sum(values), len(values)) if metric.kind == "rate" else bootstrap_mean(values)
    return math.fsum(values) / len(values), interval


def compare(
    model: str,
    baseline: str,
    benchmark: str,
    metrics: Mapping[str, Metric],
    predictions: Iterable[Prediction],
    baseline_predictions: Iterable[Prediction],
) -> list[Comparison]:
    """value(model) - value(baseline) on the rows that both have, for each metric; none where they share no row."""
    rows = {row.id: row.values for row in predictions}
    others = {row.id: row.values for row in baseline_predictions}
    comparisons = []
    for name, metric in metrics.items():
        pairs = [
            (values[name], others[key][name])
            for key, values in rows.items()
            if name in values and name in others.get(key, ())
        ]
        if pairs:
            difference, (low, high), p_value = _paired(metric, pairs)
            comparisons.append(
                Comparison(
                    model=model,
                    baseline=baseline,
                    benchmark=benchmark,
                    metric=name,
                    difference=difference,
                    low=low,
                    high=high,
                    n=len(pairs),
                    p_value=p_value,
                )
            )
    return comparisons


def _paired(metric: Metric, pairs: Sequence[tuple[float, float]]) -> tuple[float, Interval, float | None]:
    differences = [value - other for value, other in pairs]
    mean = math.fsum(differences) / len(pairs)
    if metric.kind == "mean":
        return mean, bootstrap_mean(differences), None
    gained, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return mean, tango(gained, lost, len(pairs)), mcnemar(gained, lost)


def pass_at_k(n: int, passed: int, k: int) -> float:
    """The chance that one of k replies, drawn from n of which `passed` pass, passes (Chen et al., 2021); k <= n."""
    return 1 - math.comb(n - passed, k) / math.comb(n, k)


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share, 0 <= successes <= n and n > 0 (Wilson, JASA 22, 1927)."""
    share, spread = successes / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4) / (1 + spread)
    return (max(0.0, middle - half) if successes else 0.0), (min(1.0, middle + half) if successes < n else 1.0)


def tango(gained: int, lost: int, n: int) -> Interval:
    """Score interval of the paired difference (gained - lost) / n of two rates, n > 0."""

    def distance(difference: float) -> float:
        """Standard errors, under this true difference, from it to the one that was seen. Falls with `difference`."""
        # The likeliest share of lost rows under this difference solves a * q^2 + b * q + c = 0.
        a, b = 2.0 * n, (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * q + difference * (1 - difference))
        gap = gained - lost - n * difference
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    seen = (gained - lost) / n
    low = _crossing(lambda difference: distance(difference) > Z, -1.0, seen)
    high = _crossing(lambda difference: distance(difference) > -Z, seen, 1.0)
    return min(low, seen), max(high, seen)


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where `above` turns from true to false between `low` and `high`, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return (low + high) / 2


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p: a fair coin, thrown once for each row that differs, as uneven as this or more."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """BCa bootstrap interval of a mean (Efron, JASA 82, 1987), the same for the same values and seed.

    One value alone, or values all alike, give an interval of no width: they say nothing about the spread.
    """
    import numpy as np

    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if sample.min() == sample.max():
        return float(sample[0]), float(sample[0])
    return _bca(mean, sample - mean, np.concatenate([sample[rows].mean(axis=1) for rows in _draws(len(sample), seed)]))


def bootstrap_ratio(totals: Sequence[float], sizes: Sequence[float], seed: int = 0) -> Interval:
    """BCa bootstrap interval of sum(totals) / sum(sizes), drawing whole rows; sizes are above 0.

    For a mean over tokens: those of one reply are alike, so replies are drawn, not tokens.
    """
    import numpy as np

    above, below = np.asarray(totals, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    ratio = float(above.sum() / below.sum())
    influence = (above - ratio * below) / below.mean()
    if np.abs(influence).max() <= 1e-12 * max(1.0, abs(ratio)):
        return ratio, ratio
    draws = [above[rows].sum(axis=1) / below[rows].sum(axis=1) for rows in _draws(len(above), seed)]
    return _bca(ratio, influence, np.concatenate(draws))


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of at least two values, such as one metric over several seeds."""
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def _draws(n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Bootstrap samples of n rows as indices, (samples, n), a few at a time so that memory stays small."""
    import numpy as np

    random = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // n)
    for start in range(0, RESAMPLES, chunk):
        yield random.integers(n, size=(min(chunk, RESAMPLES - start), n))


def _bca(value: float, influence: NDArray[np.float64], draws: NDArray[np.float64]) -> Interval:
    """The interval of a statistic from its bootstrap draws, mended by bias and by the skew of the rows' influence."""
    import numpy as np

    below = (np.count_nonzero(draws < value) + np.count_nonzero(draws <= value)) / (2 * RESAMPLES)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    deviations = influence / np.abs(influence).max()  # scaled, for cubes of tiny numbers are zero
    skew = float((deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5))
    ends = [_NORMAL.cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in (-Z, Z)]
    low, high = (float(end) for end in np.quantile(draws, ends))
    return min(low, value), max(high, value)
