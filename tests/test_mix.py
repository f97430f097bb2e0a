"""The mix: a share of distilled rows, nested as it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import example, rewrite, scripted_recipe
from sdft.order import plan
from sdft.records import Choice, Verdict
from sdft.training.rows import TrainingPair, pairs_sha256, replies_to_learn


def choice(number: int, rewritten: bool) -> Choice:
    return Choice(
        example_id=f"e{number}", response=f"new {number}" if rewritten else f"old {number}",
        source="rewrite" if rewritten else "original", verdict=Verdict(ok=rewritten, reason="ok"),
        candidate=0 if rewritten else None, original=f"old {number}",
    )  # fmt: skip


choices = st.lists(st.booleans(), max_size=40).map(lambda kinds: [choice(i, kind) for i, kind in enumerate(kinds)])
fractions = st.floats(0, 1)


def distilled(replies: dict[str, str]) -> set[str]:
    return {id for id, reply in replies.items() if reply.startswith("new")}


@given(choices, fractions, fractions, st.integers(0, 5))
def test_a_row_keeps_its_place_as_the_fraction_grows(rows: list[Choice], one: float, other: float, seed: int) -> None:
    low, high = (replies_to_learn(rows, fraction, seed) for fraction in sorted((one, other)))
    assert distilled(low) <= distilled(high)
    assert list(low) == [row.example_id for row in rows]
    rewritten = sum(row.source == "rewrite" for row in rows)
    assert len(distilled(low)) == round(min(one, other) * rewritten)


@given(choices, st.integers(0, 5))
def test_the_ends_are_the_originals_and_the_distilled_set(rows: list[Choice], seed: int) -> None:
    assert replies_to_learn(rows, 0.0, seed) == {row.example_id: row.original for row in rows}
    assert replies_to_learn(rows, 1.0, seed) == {row.example_id: row.response for row in rows}


@given(st.permutations(range(20)), fractions)
def test_the_order_of_rows_decides_nothing_and_the_seed_does(order: list[int], fraction: float) -> None:
    rows = [choice(i, True) for i in range(20)]
    assert distilled(replies_to_learn([rows[i] for i in order], fraction, 1)) == distilled(
        replies_to_learn(rows, fraction, 1)
    )
    assert len({frozenset(distilled(replies_to_learn(rows, 0.5, seed))) for seed in range(8)}) > 4


def test_training_takes_the_mix(tmp_path: Path) -> None:
    model = sdft.ModelConfig(name=str(save_tiny_model(tmp_path / "model")), device="cpu", dtype="float32")
    examples = [example(number) for number in range(6)]
    found = sdft.select(examples, [rewrite(i, f"It is {i + 4} then.") for i in range(6)], checks=["number"])

    def trained(name: str, **settings: Any) -> sdft.api.TrainResult:
        config = sdft.TrainConfig(epochs=1, gradient_accumulation_steps=1, **settings)
        return sdft.train(examples, model, tmp_path / name, choices=found, config=config)

    plain = sdft.train(
        examples, model, tmp_path / "plain", config=sdft.TrainConfig(epochs=1, gradient_accumulation_steps=1)
    )
    none, half, whole = (trained(f"f{f}", distilled_fraction=f) for f in (0.0, 0.5, 1.0))
    assert none.data_sha256 == plain.data_sha256
    assert none.supervised_tokens < half.supervised_tokens < whole.supervised_tokens


def test_the_hash_tells_mixes_apart() -> None:
    rows = [choice(i, True) for i in range(4)]
    hashes = {
        pairs_sha256([TrainingPair(id, "p", reply, "e") for id, reply in replies_to_learn(rows, fraction, 0).items()])
        for fraction in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    assert len(hashes) == 5


def test_vanilla_training_has_no_part_in_it(tmp_path: Path) -> None:
    def digests(fraction: float) -> dict[str, Any]:
        train = {"distilled_fraction": fraction}
        tree = scripted_recipe(tmp_path, methods=["sft", "sdft"], train=train)
        return {stage.name: stage.inputs for stage in plan(sdft.load_recipe(tree))}

    half, whole = digests(0.5), digests(1.0)
    changed = {name for name in whole if half[name] != whole[name]}
    assert changed == {"train/sdft", "eval/sdft", "compare", "analyze", "report"}
