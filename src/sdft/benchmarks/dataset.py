"""The benchmark `dataset`."""

from __future__ import annotations

from typing import Any, Literal

from sdft.benchmarks.base import DatasetBenchmark
from sdft.checks import AnyCheck, Check
from sdft.data.config import DataConfig
from sdft.records import named


def written_out(value: Any) -> Any:
    """A benchmark's settings with `data` and `check` in full where they stand as plain strings."""
    if not isinstance(value, dict) or value.get("name") != "dataset":
        return value
    full = dict(value)
    if isinstance(full.get("data"), str):
        full["data"] = {"dataset": full["data"]}
    return full | ({"check": named(full["check"])} if "check" in full else {})


class OwnDataset(DatasetBenchmark):
    """`{name: dataset, label: mine, data: test.jsonl, check: answer}`: rows of your own, and any check.

    The rows are read as the recipe's `data:` section is, so one file may serve both: `split: train[:90%]` there and
    `data: {dataset: FILE, split: "train[90%:]"}` here.
    """

    name: Literal["dataset"] = "dataset"
    data: DataConfig
    """Which rows, in the words of the recipe's `data:` section; or a dataset's name or file alone."""
    check: AnyCheck
    """What a reply must pass to count as right: `answer`, `number`, `call_ast` …"""

    def source(self) -> DataConfig:
        """The rows that are named; of those at most `limit`."""
        limits = [limit for limit in (self.limit, self.data.limit) if limit is not None]
        return self.data.model_copy(update={"limit": min(limits, default=None)})

    def rule(self) -> Check:
        """The check that is named."""
        return self.check
