"""Length-controlled win rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from sdft.length_control import length_controlled

ROWS = 805


def lengths(seed: int, factor: float = 1.0) -> tuple[list[int], list[int]]:
    random = np.random.default_rng(seed)
    replies, references = random.lognormal(6, 0.6, (2, ROWS))
    return (factor * replies).astype(int).tolist(), references.astype(int).tolist()


def drawn(theta: float, phi: float, replies: list[int], references: list[int], seed: int = 1) -> list[float]:
    """Preferences of a judge for whom the model is worth `theta` and length `phi`."""
    longer = np.subtract(replies, references)
    p = expit(theta + phi * np.tanh(longer / longer.std(ddof=1)))
    return (np.random.default_rng(seed).random(len(p)) < p).astype(float).tolist()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("phi", [2.0, 50.0], ids=["mostly by length", "by nothing but length"])
def test_where_length_alone_decides_the_win_rate_is_near_a_half(phi: float) -> None:
    replies, references = lengths(0, factor=2.0)
    wins = drawn(0.0, phi, replies, references)
    assert mean(wins) > 0.62
    assert mean(length_controlled(wins, replies, references)) == pytest.approx(0.5, abs=0.06)


def test_what_a_model_is_worth_beside_its_length_is_found_again() -> None:
    replies, references = lengths(2, factor=1.5)
    found = [
        mean(length_controlled(drawn(0.8, 1.5, replies, references, seed), replies, references)) for seed in range(20)
    ]
    assert mean(found) == pytest.approx(float(expit(0.8)), abs=0.01)


def test_lengths_that_do_not_differ_leave_the_plain_win_rate() -> None:
    wins = [1.0, 0.0, 1.0, 1.0, 0.5, 0.0] * 20
    assert mean(length_controlled(wins, [9] * 120, [9] * 120)) == pytest.approx(mean(wins), abs=1e-3)
    assert length_controlled([], [], []) == []
    assert 0.5 < length_controlled([1.0], [5], [9])[0] < 1


def test_few_rows_that_length_tells_apart_do_not_make_a_certain_zero() -> None:
    values = length_controlled([1.0, 1.0, 0.0, 0.0, 0.0], [900, 800, 300, 200, 100], [100, 100, 100, 100, 100])
    assert 0.05 < mean(values) < 0.5
    assert np.std(values) > 0.05


def test_always_winning_is_a_win_rate_near_one_without_blowing_up() -> None:
    replies, references = lengths(3)
    values = length_controlled([1.0] * ROWS, replies, references)
    assert 0.99 < mean(values) <= 1.0
    assert np.isfinite(values).all()


def test_the_values_spread_as_the_win_rate_does_from_sample_to_sample() -> None:
    replies, references = lengths(4, factor=1.3)
    samples = [length_controlled(drawn(0.4, 1.0, replies, references, seed), replies, references) for seed in range(60)]
    errors = [float(np.std(values, ddof=1)) / ROWS**0.5 for values in samples]
    assert mean(errors) == pytest.approx(float(np.std([mean(values) for values in samples], ddof=1)), rel=0.25)


def test_the_difficulty_of_an_instruction_is_taken_into_account() -> None:
    random = np.random.default_rng(5)
    replies, references = lengths(5)
    difficulty = random.normal(0, 2, ROWS)
    p = expit(0.3 + 1.5 * difficulty)
    wins = (random.random(ROWS) < p).astype(float).tolist()
    values = length_controlled(wins, replies, references, difficulty.tolist())
    assert mean(values) == pytest.approx(float(p.mean()), abs=0.03)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3000), st.integers(1, 3000)), min_size=2, max_size=40
    )
)
def test_the_reference_wins_what_the_model_loses(rows: list[tuple[float, int, int]]) -> None:
    wins, replies, references = (list(column) for column in zip(*rows, strict=True))
    ours = mean(length_controlled(wins, replies, references))
    theirs = mean(length_controlled([1 - win for win in wins], references, replies))
    assert 0 <= ours <= 1
    assert ours + theirs == pytest.approx(1, abs=1e-5)
