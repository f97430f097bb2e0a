"""The benchmark `openfunction`."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdft.benchmarks.base import DatasetBenchmark
from sdft.checks import Check
from sdft.checks.call import Call, positional_score
from sdft.data.config import DataConfig
from sdft.records import Example, Metric, Verdict


class OpenFunction(DatasetBenchmark):
    """`Find a coffee shop near me … Function to be used: coffee_shop.find_nearby …` → one call, to the letter.

    The 112 test requests of sail-sg/sdft with its `call` check; `positional` is its later score, which gives 0.5
    where only the argument values match by position.
    """

    METRICS: ClassVar[dict[str, Metric]] = {"accuracy": Metric(), "positional": Metric(kind="mean")}
    CHECK: ClassVar[Check] = Call()
    TEMPLATES: ClassVar[dict[str, str]] = {"verbatim": "alpaca"}

    name: Literal["openfunction"] = "openfunction"

    def source(self) -> DataConfig:
        """The test split."""
        return DataConfig(dataset="openfunction_test", limit=self.limit)

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """The verdict of `call`, and the half credit beside it."""
        verdict, values = super().judge(example, reply)
        return verdict, {**values, "positional": positional_score(example.reference, reply)}
