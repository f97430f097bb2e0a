"""The benchmark `multiarith`."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdft.benchmarks.base import DatasetBenchmark
from sdft.checks import Check, Number
from sdft.data.config import DataConfig


class MultiArith(DatasetBenchmark):
    """`Paige had 11 songs on her mp3 player. If she deleted 9 … and then added 8 …` → `The answer is 10`.

    180 problems of two or three steps, prompted and scored like `gsm8k`.
    """

    CHECK: ClassVar[Check] = Number()
    TEMPLATES: ClassVar[dict[str, str]] = {"verbatim": "gsm8k_infer"}

    name: Literal["multiarith"] = "multiarith"

    def source(self) -> DataConfig:
        """All problems."""
        return DataConfig(dataset="multiarith_test", limit=self.limit)
