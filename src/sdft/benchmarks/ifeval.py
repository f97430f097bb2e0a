"""The benchmark `ifeval`."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from sdft.benchmarks.base import Benchmark
from sdft.checks import PASS
from sdft.data.files import Row, read_file
from sdft.data.registry import find_file
from sdft.engines import Sampling
from sdft.errors import BenchmarkError
from sdft.records import Example, Message, Metric, Verdict
from sdft.rundir import seed_for

FILE = "bench/ifeval/input_data.jsonl"
ORIGIN = "github.com/google-research/google-research, instruction_following_eval/data/input_data.jsonl"
PACKAGES = {"lm_eval": "lm-eval", "langdetect": "langdetect", "immutabledict": "immutabledict", "nltk": "nltk"}
PUNKT = "tokenizers/punkt_tab"
PUNKT_PACKAGE = "llama_index.core"
"""A Python package that carries nltk's sentence splitter, for where nltk's own download cannot be reached."""


class IfEval(Benchmark):
    """`Write a 300+ word summary of … Do not use any commas and …` → are these instructions followed?

    IFEval (Zhou et al., arXiv 2311.07911): prompts with one to three instructions that a program can verify, by the
    checkers of lm-evaluation-harness.

    - `prompt_level_strict`: the share of replies that follow all their instructions;
    - `prompt_level_loose`: likewise, where a reply also counts without asterisks, its first or its last line;
    - `inst_level_strict`, `inst_level_loose`: the share of instructions that are followed. A row's value is the
      number it follows over the mean number of instructions in a row, so that the mean over all rows is the
      harness's, and the interval is that of a sample of prompts, not of instructions.

    Greedy, with at most 1280 new tokens, as the harness decodes. Two of its checks are drawn at random there: the
    language of a text, and the letter to be counted where a prompt (1122, 1129) asks for a sign. Here the same
    reply always gets the same verdict.
    """

    METRICS: ClassVar[dict[str, Metric]] = {
        "prompt_level_strict": Metric(),
        "prompt_level_loose": Metric(),
        "inst_level_strict": Metric(kind="mean"),
        "inst_level_loose": Metric(kind="mean"),
    }
    ROLE: ClassVar[Literal["task", "retention"]] = "retention"
    TEMPLATES: ClassVar[dict[str, str]] = {"chat": "plain", "verbatim": "alpaca"}

    name: Literal["ifeval"] = "ifeval"
    sampling: Sampling | None = Sampling(max_new_tokens=1280)
    """Decoding; null: the recipe's `evaluate.sampling`."""

    def examples(self) -> list[Example]:
        """The prompts; `reference` is empty. Raises BenchmarkError and DataError."""
        path = find_file(FILE)
        if path is None:
            raise BenchmarkError(_no_data())
        rows = list(_rows(path))[: self.limit]
        mean = fmean(len(row["instruction_id_list"]) for row in rows)
        return [
            Example(
                id=str(row["key"]),
                messages=(Message(role="user", content=row["prompt"]),),
                reference="",
                meta={"row": row, "mean_instructions": mean},
            )
            for row in rows
        ]

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """The harness's verdicts; the detail names the instructions that are not followed strictly."""
        row = example.meta.get("row")
        if row is None:
            raise BenchmarkError(f"{self.name}: '{example.id}' brings no instructions to check; take its `examples`")
        found = _checked(row, reply)
        failed = [
            name for name, ok in zip(row["instruction_id_list"], found["inst_level_strict_acc"], strict=True) if not ok
        ]
        verdict = Verdict(ok=False, reason="not_followed", detail=", ".join(failed)) if failed else PASS
        mean = example.meta["mean_instructions"]
        return verdict, {
            "prompt_level_strict": float(found["prompt_level_strict_acc"]),
            "prompt_level_loose": float(found["prompt_level_loose_acc"]),
            "inst_level_strict": sum(found["inst_level_strict_acc"]) / mean,
            "inst_level_loose": sum(found["inst_level_loose_acc"]) / mean,
        }

    def missing(self) -> Iterator[str]:
        """The harness with its checkers' packages, nltk's sentence splitter, and the prompts."""
        absent = [package for module, package in PACKAGES.items() if find_spec(module) is None]
        if absent:
            yield f"not installed: {', '.join(absent)}; pip install -e '.[eval]' where sdft was cloned"
        if _punkt_folder() is None:
            yield _no_punkt()
        if find_file(FILE) is None:
            yield _no_data()


def _no_data() -> str:
    return (
        f"{FILE}: in no folder of SDFT_DATA_DIR; get it from {ORIGIN}, put it at FOLDER/{FILE} and set "
        "SDFT_DATA_DIR=FOLDER"
    )


def _no_punkt() -> str:
    return (
        f"nltk's {PUNKT}, which tells sentences apart, is not here: python -m nltk.downloader punkt_tab, or, where "
        "only a package index can be reached, pip install --no-deps llama-index-core, which carries it"
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_file(path):
        if not isinstance(row, Row) or not {"key", "prompt", "instruction_id_list", "kwargs"} <= set(row.value):
            raise BenchmarkError(f"{path}:{row.line}: not a row of IFEval; get the file anew from {ORIGIN}")
        yield row.value


def _punkt_folder() -> Path | None:
    """The nltk data folder that holds the sentence splitter, found without importing nltk; None where none does."""
    named = [Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    below = [Path(sys.prefix), Path(sys.prefix, "share"), Path(sys.prefix, "lib"), Path.home()]
    system = [Path("/usr/share"), Path("/usr/local/share"), Path("/usr/lib"), Path("/usr/local/lib")]
    folders = [*named, *(folder / "nltk_data" for folder in [*below, *system])]
    package = find_spec(PUNKT_PACKAGE) if find_spec(PUNKT_PACKAGE.split(".")[0]) else None
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "_static/nltk_cache")
    return next((folder for folder in folders if (folder / PUNKT / "english").is_dir()), None)


@functools.cache
def _checkers() -> Callable[[dict[str, Any], list[str]], dict[str, Any]]:
    """The harness's own scorer of a row. Raises BenchmarkError where its sentence splitter is not here."""
    folder = _punkt_folder()
    if folder is None:
        raise BenchmarkError(_no_punkt())
    import langdetect
    import nltk

    if str(folder) not in nltk.data.path:  # before the harness looks for it, and fetches what it does not find
        nltk.data.path.append(str(folder))
    langdetect.DetectorFactory.seed = 0
    from lm_eval.tasks.ifeval.utils import process_results

    scorer: Callable[[dict[str, Any], list[str]], dict[str, Any]] = process_results
    return scorer


def _checked(row: dict[str, Any], reply: str) -> dict[str, Any]:
    """The harness's metrics of one reply; what it draws at random depends on the row alone."""
    scorer = _checkers()
    state = random.getstate()
    random.seed(seed_for("ifeval", row["key"]))
    try:
        return scorer(row, [reply])
    finally:
        random.setstate(state)
