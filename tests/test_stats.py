"""Intervals hold what they promise."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft.records import Metric, Prediction, Verdict
from sdft.stats import bootstrap_mean, bootstrap_ratio, compare, mcnemar, score, t_interval, tango, wilson

METRICS = {"accuracy": Metric(), "words": Metric(kind="mean", better="neither", percent=False)}
shares = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
tables = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 500)).filter(lambda t: sum(t) > 0)


def rows(**values: dict[str, float]) -> list[Prediction]:
    verdict = Verdict(ok=True, reason="ok")
    return [
        Prediction(id=key, label="", predict="", finish="stop", tokens=1, verdict=verdict, values=value)
        for key, value in values.items()
    ]


def test_wilson_known_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


@given(shares)
def test_wilson_properties(share: tuple[int, int]) -> None:
    successes, n = share
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = wilson(successes * 4, n * 4)
    assert wider[1] - wider[0] < high - low


def test_wilson_equals_scipy() -> None:
    from scipy.stats import binomtest

    for successes, n in ((0, 1), (1, 1), (3, 17), (52, 100), (1319, 1319), (400, 1319)):
        theirs = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_mcnemar_equals_the_binomial_test() -> None:
    from scipy.stats import binomtest

    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(0.03125)
    assert mcnemar(2, 10) == pytest.approx(158 / 4096)
    for gained, lost in ((1, 0), (3, 3), (20, 41), (7, 300), (650, 669)):
        assert mcnemar(gained, lost) == pytest.approx(binomtest(gained, gained + lost).pvalue, rel=1e-9)
        assert mcnemar(gained, lost) == mcnemar(lost, gained)
    assert mcnemar(100_000, 100_000) == 1.0
    assert mcnemar(99_500, 100_500) == pytest.approx(binomtest(99_500, 200_000).pvalue, rel=1e-9)
    assert mcnemar(0, 200_000) == 0.0  # and no error for a number too small


def test_tango_of_rows_that_all_agree() -> None:
    z2 = 1.959963984540054**2  # then the interval is z^2 / (n + z^2) to either side
    assert tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9)


@pytest.mark.parametrize("table", [(1, 0, 44), (12, 5, 100), (5, 12, 100), (40, 40, 100), (3, 30, 112)])
def test_tango_ends_lie_at_the_score_statistic(table: tuple[int, int, int]) -> None:
    """The likeliest share of lost rows is found numerically here, in closed form there."""
    from scipy.optimize import minimize_scalar

    gained, lost, n = table
    for end, sign in zip(tango(gained, lost, n), (1, -1), strict=True):

        def unlikelihood(q: float, end: float = end) -> float:
            terms = ((gained, q + end), (lost, q), (n - gained - lost, 1 - 2 * q - end))
            return -sum(count * math.log(max(chance, 1e-300)) for count, chance in terms if count)

        q = minimize_scalar(unlikelihood, bounds=(max(0.0, -end), (1 - end) / 2), options={"xatol": 1e-12}).x
        statistic = (gained - lost - n * end) / math.sqrt(n * (2 * q + end * (1 - end)))
        assert statistic == pytest.approx(sign * 1.959964, abs=1e-3)


@given(tables)
def test_tango_properties(table: tuple[int, int, int]) -> None:
    gained, lost, _ = table
    n = sum(table)
    low, high = tango(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert low < high
    assert tango(lost, gained, n) == pytest.approx((-high, -low), abs=1e-9)


@given(tables)
def test_tango_agrees_with_the_score_test(table: tuple[int, int, int]) -> None:
    gained, lost, _ = table
    if gained + lost == 0:
        return
    z = (gained - lost) / math.sqrt(gained + lost)  # McNemar's statistic, whose test it inverts
    low, high = tango(gained, lost, sum(table))
    if abs(abs(z) - 1.96) > 0.01:
        assert (low <= 0 <= high) == (abs(z) < 1.96)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_bootstrap_properties(values: list[float]) -> None:
    low, high = bootstrap_mean(values)
    mean = math.fsum(values) / len(values)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= low <= mean + slack and mean - slack <= high <= max(values) + slack
    assert bootstrap_mean(values) == (low, high)


def test_bootstrap_edge_cases() -> None:
    assert bootstrap_mean([3.5]) == (3.5, 3.5)
    assert bootstrap_mean([2.0] * 9) == (2.0, 2.0)
    many = [math.sqrt(i) for i in range(50)]
    assert bootstrap_mean(many, seed=1) != bootstrap_mean(many, seed=2)


def test_bootstrap_narrows_with_the_root_of_n() -> None:
    draw = random.Random(0)
    widths = []
    for n in (100, 400, 1600):
        low, high = bootstrap_mean([draw.gauss(0, 1) for _ in range(n)])
        widths.append((high - low) * math.sqrt(n))
    assert all(width == pytest.approx(2 * 1.96, rel=0.15) for width in widths)


def test_bootstrap_equals_scipy_bca() -> None:
    import numpy as np
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).exponential(size=60)
    theirs = bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    assert bootstrap_mean(values.tolist()) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def coverage(trials: int, covered: int) -> bool:
    """Whether `covered` of `trials` is what a 95 % interval may show: within four standard errors, and a little."""
    return abs(covered / trials - 0.95) < 0.02 + 4 * math.sqrt(0.95 * 0.05 / trials)


def test_wilson_coverage() -> None:
    draw = random.Random(0)
    for share, n in ((0.5, 40), (0.1, 100), (0.9, 112)):
        covered = 0
        for _ in range(2000):
            low, high = wilson(sum(draw.random() < share for _ in range(n)), n)
            covered += low <= share <= high
        assert coverage(2000, covered), (share, n, covered)


def test_tango_coverage() -> None:
    draw = random.Random(0)
    for gain, loss, n in ((0.1, 0.05, 100), (0.3, 0.3, 40), (0.4, 0.05, 100)):
        covered = 0
        for _ in range(1000):
            outcomes = draw.choices((1, -1, 0), (gain, loss, 1 - gain - loss), k=n)
            low, high = tango(outcomes.count(1), outcomes.count(-1), n)
            covered += low <= gain - loss <= high
        assert coverage(1000, covered), (gain, loss, covered)


def test_bootstrap_coverage_of_skewed_values() -> None:
    draw = random.Random(0)
    covered = 0
    for trial in range(300):
        low, high = bootstrap_mean([draw.expovariate(1) for _ in range(64)], seed=trial)
        covered += low <= 1 <= high
    assert coverage(300, covered), covered


def test_score_leaves_rows_without_a_value_out() -> None:
    predictions = rows(
        a={"accuracy": 1, "words": 3}, b={"accuracy": 0, "words": 5}, c={}, d={"accuracy": 1, "words": 10}
    )
    accuracy, words = score("sft", "gsm8k", METRICS, predictions)
    assert (accuracy.metric, accuracy.value, accuracy.n, accuracy.kind) == ("accuracy", 2 / 3, 3, "rate")
    assert (accuracy.low, accuracy.high) == wilson(2, 3)
    assert (words.metric, words.value, words.n, words.better) == ("words", 6, 3, "neither")
    assert words.low < 6 < words.high
    assert score("sft", "gsm8k", METRICS, rows(a={})) == []


def test_compare_joins_by_id() -> None:
    model = rows(a={"accuracy": 1, "words": 1}, b={"accuracy": 1, "words": 2}, x={"accuracy": 1, "words": 9})
    baseline = rows(b={"accuracy": 0, "words": 5}, y={"accuracy": 1}, a={"accuracy": 1, "words": 7})
    accuracy, words = compare("sdft", "seed", "gsm8k", METRICS, model, baseline)
    assert (accuracy.n, accuracy.difference, accuracy.p_value) == (2, 0.5, 1.0)
    assert (accuracy.low, accuracy.high) == tango(1, 0, 2)
    assert (words.n, words.difference, words.p_value) == (2, -4.5, None)
    assert words.low <= -4.5 <= words.high
    assert compare("sdft", "seed", "gsm8k", METRICS, model, rows(y={"accuracy": 1})) == []


def test_compare_is_antisymmetric() -> None:
    draw = random.Random(0)
    one, two = (
        rows(**{f"r{i}": {"accuracy": float(draw.random() < share)} for i in range(80)}) for share in (0.7, 0.4)
    )
    (forth,) = compare("a", "b", "x", METRICS, one, two)
    (back,) = compare("b", "a", "x", METRICS, two, one)
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert back.p_value == forth.p_value
    assert forth.p_value is not None and forth.p_value < 0.05


def test_interval_widens_with_the_rows_that_differ() -> None:
    widths = [high - low for low, high in (tango(10 + d, d, 200) for d in (0, 20, 80))]
    assert all(narrow < wide for narrow, wide in pairwise(widths))


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=12), st.sampled_from([1, 2, 8]))
def test_a_ratio_to_equal_sizes_is_a_mean(values: list[int], size: int) -> None:
    found = bootstrap_ratio([value * size for value in values], [float(size)] * len(values))
    assert found == pytest.approx(bootstrap_mean(values), abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=1, max_size=20))
def test_the_interval_of_a_ratio_holds_it_and_one_row_says_nothing(rows: list[tuple[float, int]]) -> None:
    totals, sizes = [total for total, _ in rows], [float(size) for _, size in rows]
    ratio = sum(totals) / sum(sizes)
    low, high = bootstrap_ratio(totals, sizes)
    assert low <= ratio + 1e-9 and ratio - 1e-9 <= high
    assert bootstrap_ratio(totals[:1], sizes[:1]) == pytest.approx((totals[0] / sizes[0],) * 2)


def test_the_interval_of_a_ratio_draws_rows_not_tokens() -> None:
    draw = random.Random(0)
    totals, sizes = [], []
    for _ in range(40):  # each row has a level of its own, and a hundred tokens that hardly differ
        totals.append(100 * draw.gauss(2, 1))
        sizes.append(100.0)
    low, high = bootstrap_ratio(totals, sizes)
    assert 0.4 < high - low < 0.9  # 2 * 1.96 / sqrt(40) = 0.62, ten times what 4000 tokens would give


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    from scipy.stats import sem, t

    expected = t.interval(0.95, len(values) - 1, sum(values) / len(values), sem(values) or 1e-300)
    assert t_interval(values) == pytest.approx(expected, abs=1e-9)
