"""The benchmark `bfcl_simple`."""

from __future__ import annotations

from typing import ClassVar, Literal

from sdft.benchmarks.base import DatasetBenchmark
from sdft.checks import CallAst, Check
from sdft.data.config import DataConfig


class BfclSimple(DatasetBenchmark):
    """`Find the area of a triangle with a base of 10 units and height of 5 units. …` → `area(base=10, height=5)`.

    Berkeley Function Calling Leaderboard, category simple_python: the call counts for what it means (`call_ast`).
    """

    CHECK: ClassVar[Check] = CallAst()
    TEMPLATES: ClassVar[dict[str, str]] = {"verbatim": "alpaca"}

    name: Literal["bfcl_simple"] = "bfcl_simple"
    part: Literal["train", "dev", "test", "all"] = "test"
    """Part of the fixed split: 240, 60 and 100 requests."""

    def source(self) -> DataConfig:
        """The requests of this part."""
        return DataConfig(dataset="bfcl_simple", options={"part": self.part}, limit=self.limit)
