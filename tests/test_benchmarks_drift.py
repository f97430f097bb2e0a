"""`drift`: its prompts, and the divergence of two models' distributions."""

from __future__ import annotations

from collections import Counter

import pytest

from sdft.benchmarks import Drift
from sdft.benchmarks.drift import divergence
from sdft.errors import BenchmarkError

CATEGORIES = {"writing", "facts", "code", "maths", "advice", "translation", "harmless_but_touchy", "harmful"}


def test_prompts_are_spread_evenly() -> None:
    drift = Drift()
    examples = drift.examples()
    assert Counter(map(drift.groups, examples)) == dict.fromkeys(CATEGORIES, 8)
    assert len({example.id for example in examples}) == len({example.instruction for example in examples}) == 64
    assert all(example.instruction == example.instruction.strip() and not example.reference for example in examples)
    assert {drift.groups(example) for example in Drift(limit=8).examples()} == CATEGORIES


def test_a_reply_alone_gives_its_length() -> None:
    drift = Drift()
    verdict, values = drift.judge(drift.examples()[0], "The lamp turns  slowly.\n")
    assert verdict.ok and values == {"reply_words": 4.0}
    assert drift.judge(drift.examples()[0], "")[1] == {"reply_words": 0.0}
    assert [metric.better for metric in drift.METRICS.values()] == ["lower", "higher", "neither"]


def test_divergence_of_known_distributions() -> None:
    torch = pytest.importorskip("torch")
    seed = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05]]).log()
    tuned = torch.tensor([[0.25, 0.5, 0.25], [0.9, 0.05, 0.05]]).log()
    ((kl, same),) = divergence(iter([seed]), iter([tuned]))
    assert kl == pytest.approx(0.5 * torch.tensor(2.0).log().item() / 2)  # over two tokens, the second alike
    assert same == 0.5  # the seed's first maximum is its first token, the tuned model's its second


def test_divergence_agrees_with_torch_and_is_zero_for_one_model() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    seeds, tuneds = (
        [torch.randn(length, 50, generator=generator).log_softmax(-1) for length in (1, 7, 30)] for _ in range(2)
    )
    found = list(divergence(iter(seeds), iter(tuneds)))
    for (kl, same), seed, tuned in zip(found, seeds, tuneds, strict=True):
        expected = torch.nn.functional.kl_div(tuned, seed, reduction="batchmean", log_target=True).item()
        assert kl == pytest.approx(expected, rel=1e-5) and kl > 0.1
        assert 0 <= same <= 1
    assert list(divergence(iter(seeds), iter(seeds))) == [(0.0, 1.0)] * 3


def test_divergence_of_nothing_and_of_strangers() -> None:
    torch = pytest.importorskip("torch")
    assert list(divergence(iter([torch.zeros(0, 5)]), iter([torch.zeros(0, 5)]))) == [(0.0, 1.0)]
    with pytest.raises(BenchmarkError, match="share a tokenizer"):
        list(divergence(iter([torch.zeros(2, 5)]), iter([torch.zeros(2, 6)])))
