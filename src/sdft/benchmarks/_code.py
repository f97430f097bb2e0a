"""What the benchmarks that run programs share: samples, pass@k, and the sandbox."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from sdft.benchmarks.base import Benchmark
from sdft.checks.base import PASS, fail
from sdft.data.registry import data_dirs
from sdft.engines import Sampling
from sdft.errors import BenchmarkError, DataError
from sdft.records import Example, Metric, Prediction, Verdict
from sdft.sandbox import UNCONFINED, Limits, Sandbox, problem, run_tests, sandbox
from sdft.stats import pass_at_k

SAMPLE = "#"
"""Stands between a problem's id and the number of a sample."""
NO_CODE = "no_code"
UNSANDBOXED = "unsandboxed"
"""Stands with a prediction's values, as 1, where its program ran without a sandbox."""


class CodeBenchmark(Benchmark):
    """Problems whose replies are programs, run against tests in a sandbox (sdft.sandbox).

    `pass@k` is the chance that at least one of k replies passes, estimated without bias from `samples` of them
    (Chen et al., arXiv 2107.03374), for each problem; its mean has one row per problem.
    """

    METRICS: ClassVar[dict[str, Metric]] = {"pass@1": Metric()}
    PARALLEL: ClassVar[bool] = True
    FILE: ClassVar[str]
    """The problems' file, relative to a folder of SDFT_DATA_DIR."""
    SOURCE: ClassVar[str]
    """How to get that file."""

    name: str
    sampling: Sampling | None = Sampling(max_new_tokens=1024)
    """Decoding, greedy; null: the recipe's `evaluate.sampling`."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many problems."""
    samples: int = Field(default=1, ge=1)
    """Replies to each problem, each with a seed of its own."""
    k: tuple[int, ...] = (1,)
    """For which k `pass@k` is given; none above `samples`."""
    timeout: float = Field(default=10.0, gt=0, le=600)
    """Seconds of CPU time that a program may take for its tests; on the clock, six times that."""
    memory_mb: int = Field(default=1024, ge=128)
    """Mebibytes of address space that a program may take."""
    allow_unsandboxed: bool = False
    """Where no sandbox works, run what the model writes all the same, with the user's own rights."""

    @model_validator(mode="after")
    def _samples_differ_and_suffice(self) -> CodeBenchmark:
        if not self.k or len(set(self.k)) < len(self.k) or not all(1 <= k <= self.samples for k in self.k):
            raise ValueError(f"k: different numbers from 1 to `samples` ({self.samples}) are wanted, not {self.k}")
        for why in self.conflicts(self.sampling) if self.sampling else ():
            raise ValueError(why)
        return self

    def conflicts(self, sampling: Sampling) -> Sequence[str]:
        """Several samples, all of them the same."""
        if self.samples > 1 and sampling.temperature == 0:
            return ["samples: greedy decoding gives the same reply each time; set sampling.temperature"]
        return []

    def problems(self) -> list[Example]:
        """All problems. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} must say which problems it has")

    def outcome(self, example: Example, reply: str, limits: Limits, where: Sandbox) -> Verdict:
        """Run the program in a reply against the problem's tests."""
        raise NotImplementedError(f"{type(self).__name__} must say how it tests a program")

    def examples(self) -> list[Example]:
        """Each problem as often as it is sampled, under ids such as `HumanEval/0#1`. Raises DataError."""
        problems = self.problems()[: self.limit]
        if self.samples == 1:
            return problems
        return [
            item.model_copy(update={"id": f"{item.id}{SAMPLE}{number}"})
            for item in problems
            for number in range(self.samples)
        ]

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """Whether the program in a reply passes all tests. Raises BenchmarkError where no sandbox works."""
        if "row" not in example.meta:
            raise BenchmarkError(f"{self.name}: row {example.id} comes without its tests; evaluate in a recipe instead")
        where = UNCONFINED if self.allow_unsandboxed and problem() else sandbox()
        verdict = self.outcome(example, reply, Limits(self.timeout, self.memory_mb << 20), where)
        free = where == UNCONFINED and verdict.reason != NO_CODE
        return verdict, {"pass@1": float(verdict.ok)} | ({UNSANDBOXED: 1.0} if free else {})

    def metrics(self) -> dict[str, Metric]:
        """`pass@k` for each k. A single reply's is 0 or 1."""
        return {f"pass@{k}": Metric(kind="rate" if self.samples == 1 else "mean") for k in self.k}

    def combine(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """One row per problem. Replies that failed to come are left out; a k above what is left has no value."""
        if self.samples == 1:
            return predictions
        by_problem: dict[str, list[Prediction]] = defaultdict(list)
        for prediction in predictions:
            by_problem[prediction.id.rpartition(SAMPLE)[0]].append(prediction)
        return [self._merged(name, samples) for name, samples in by_problem.items()]

    def _merged(self, name: str, samples: Sequence[Prediction]) -> Prediction:
        judged = [sample for sample in samples if sample.values]
        passed = [sample for sample in judged if sample.verdict.ok]
        shown = (passed or judged or samples)[0]
        values = {f"pass@{k}": pass_at_k(len(judged), len(passed), k) for k in self.k if k <= len(judged)}
        tokens = sum(sample.tokens for sample in samples)
        return shown.model_copy(update={"id": name, "values": values, "tokens": tokens})

    def notes(self, predictions: Sequence[Prediction]) -> Sequence[str]:
        """How many programs ran without a sandbox, whatever there is now."""
        ran = [prediction for prediction in predictions if prediction.values and prediction.verdict.reason != NO_CODE]
        free = [prediction for prediction in ran if UNSANDBOXED in prediction.values]
        some = "programs" if len(free) == len(ran) else f"{len(free)} of {len(ran)} programs"
        return [f"{some} ran without a sandbox (allow_unsandboxed)"] if free else []

    def missing(self) -> Iterator[str]:
        """The problems' file, and a working sandbox."""
        if self.file() is None:
            yield self._absent()
        why = None if self.allow_unsandboxed else problem()
        if why:
            yield why

    def file(self) -> Path | None:
        """The problems' file, or None where it is nowhere."""
        places = (folder / self.FILE for folder in data_dirs())
        return next((place for place in places if place.is_file()), None)

    def rows(self) -> list[dict[str, Any]]:
        """The file's rows. Raises DataError."""
        path = self.file()
        if path is None:
            raise DataError(self._absent())
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); get it again") from None

    def _absent(self) -> str:
        return f"{self.name}: no data here; {self.SOURCE} {self.FILE} in a folder of SDFT_DATA_DIR"


def run(
    sources: Sequence[str] | None, helpers: str, tests: str, names: Mapping[str, str], limits: Limits, where: Sandbox
) -> Verdict:
    """The verdict on a program; None for `sources`: there was none in the reply."""
    if sources is None:
        return fail(NO_CODE, "no Python that defines what was asked for")
    outcome = run_tests(sources, tests, names, limits, where, helpers)
    return PASS if outcome.reason == "ok" else fail(outcome.reason, outcome.detail)
