"""What every benchmark is: a frozen settings object that has examples and judges replies to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from sdft.engines import Sampling
from sdft.records import Example, Settings, Verdict


class Metric(Settings):
    """How a per-row value becomes a score."""

    kind: Literal["rate", "mean"] = "rate"
    """`rate`: values 0 or 1, Wilson interval; `mean`: any values, bootstrap interval."""
    better: Literal["higher", "lower", "neither"] = "higher"
    percent: bool = True
    """Shown times 100."""


class Benchmark(Settings):
    """A subclass adds `name: Literal[...]`, `METRICS`, `examples` and `judge`.

    Subclasses are listed in the union of `sdft.benchmarks`; a test fails for a module that is missing there.
    """

    METRICS: ClassVar[dict[str, Metric]]
    """Metric name → how it is scored; the first is the benchmark's main one."""
    ROLE: ClassVar[Literal["task", "retention"]] = "task"
    """`retention`: measures what fine-tuning should not change."""

    label: str | None = None
    """A name for this entry where one benchmark stands twice in a recipe; default: its `name`."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many rows."""
    sampling: Sampling | None = None
    """Decoding; None: the recipe's `evaluate.sampling`."""
    template: str | None = None
    """A template name or jinja string in place of the recipe's `prompt.infer`."""

    def examples(self) -> list[Example]:
        """The rows, each with an id that stays the same from run to run. Raises BenchmarkError or DataError."""
        raise NotImplementedError(f"{type(self).__name__} must say which rows it has")

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """The verdict on one reply, and this row's value of each metric of METRICS."""
        raise NotImplementedError(f"{type(self).__name__} must say how it judges a reply")

    def groups(self, example: Example) -> str | None:
        """A category of this row for tables within the benchmark, or None."""
        return None

    def missing(self) -> Iterator[str]:
        """What this benchmark needs and does not find (package, data), each with how to get it."""
        return iter(())
