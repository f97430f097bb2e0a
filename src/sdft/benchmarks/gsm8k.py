"""The benchmark `gsm8k`."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdft.benchmarks.base import DatasetBenchmark
from sdft.checks import Check, Number
from sdft.data.config import DataConfig


class Gsm8k(DatasetBenchmark):
    """`Janet's ducks lay 16 eggs per day. She eats three …` → `… The answer is 18.`: the last number decides.

    The 1319 test problems of GSM8K, scored as in sail-sg/sdft.
    """

    CHECK: ClassVar[Check] = Number()
    TEMPLATES: ClassVar[dict[str, str]] = {"verbatim": "gsm8k_infer"}

    name: Literal["gsm8k"] = "gsm8k"

    def source(self) -> DataConfig:
        """The test split."""
        return DataConfig(dataset="gsm8k_test", limit=self.limit)
