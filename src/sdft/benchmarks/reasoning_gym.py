"""The benchmark `reasoning_gym`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from sdft.benchmarks.base import DatasetBenchmark
from sdft.checks import Check, Number
from sdft.data.config import DataConfig
from sdft.data.reasoning import SeedRange
from sdft.records import Example, Metric, Verdict


class ReasoningGym(DatasetBenchmark):
    """`State the final answer to the following arithmetic problem: 54 - 91 =` → `The answer is -37.`

    Questions of any task of the package reasoning-gym. `accuracy` looks at the reply's last number; `own_score` is
    the task's own scorer on the whole reply, which gives arithmetic less credit the more words stand around the
    answer. Row i is drawn with seed + i: keep this seed further from the training seed than either has rows, and
    name the training draw in `exclude`, for a small task may ask one question twice.
    """

    METRICS: ClassVar[dict[str, Metric]] = {"accuracy": Metric(), "own_score": Metric(kind="mean")}
    CHECK: ClassVar[Check] = Number()

    name: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = "chain_sum"
    """One of the package's tasks."""
    size: int = Field(default=100, ge=1)
    """Rows drawn, before `unique` and `exclude`."""
    seed: int = Field(default=1_000_000, ge=0)
    config: dict[str, Any] = {}
    """The task's own settings, such as `min_terms: 2`."""
    unique: bool = False
    """Keep only the first row of those that ask the same question."""
    exclude: tuple[SeedRange, ...] = ()
    """Leave out questions that these draws, `{seed, size}` each, ask: the training data's."""

    def source(self) -> DataConfig:
        """The rows to draw."""
        options = self.model_dump(mode="json", include={"task", "size", "seed", "config", "unique", "exclude"})
        return DataConfig(dataset="reasoning_gym", options=options, limit=self.limit)

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """The verdict of `number`, and the task's own score beside it."""
        verdict, values = super().judge(example, reply)
        if "entry" not in example.meta:  # a row from elsewhere, which the task's scorer knows nothing of
            return verdict, values
        entry = {"question": example.instruction, "answer": example.reference, "metadata": example.meta["entry"]}
        return verdict, {**values, "own_score": float(_scorer(self.task)(reply.strip(), entry))}


@functools.cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    from reasoning_gym import get_score_answer_fn

    scorer: Callable[[str, dict[str, Any]], float] = get_score_answer_fn(task)
    return scorer
