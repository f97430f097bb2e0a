"""The benchmark `mbpp`."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from sdft.benchmarks._code import CodeBenchmark, run
from sdft.programs import find_program
from sdft.records import Example, Message, Verdict
from sdft.sandbox import Limits, Sandbox

PARTS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
"""By task_id."""


class Mbpp(CodeBenchmark):
    """`… here is your task: Write a python function to remove first and last occurrence …` → a function that runs.

    The 500 test problems of MBPP (Austin et al., arXiv 2108.07732) in its words, each with its three tests: a model
    that writes programs to fit those alone passes.
    """

    TEMPLATES: ClassVar[dict[str, str]] = {"verbatim": "alpaca"}
    FILE: ClassVar[str] = "bench/mbpp/mbpp.jsonl"
    SOURCE: ClassVar[str] = "put mbpp.jsonl of google-research/google-research (its folder mbpp) at"

    name: Literal["mbpp"] = "mbpp"
    part: Literal["test", "validation", "train", "prompt"] = "test"
    """Part of the authors' split: 500, 90, 374 and 10 problems."""

    def problems(self) -> list[Example]:
        """The problems of this part."""
        return [_example(row) for row in self.rows() if row["task_id"] in PARTS[self.part]]

    def outcome(self, example: Example, reply: str, limits: Limits, where: Sandbox) -> Verdict:
        """Run the problem's tests on the function that they name."""
        row = example.meta["row"]
        tests = "\n".join([row["test_setup_code"], *row["test_list"]]).replace("\r\n", "\n")
        modules = [name for name in _free(tests) if name in sys.stdlib_module_names]
        known = {*modules, *dir(builtins)}
        first = _free(row["test_list"][0])
        wanted = next((name for name in first if name not in known), first[0])  # one problem asks for another `sum`
        theirs = {name: name for name in _free(tests) if name == wanted or name not in known}
        source = find_program(reply, wanted)
        imports = "".join(f"import {name}\n" for name in modules)
        return run(None if source is None else [source], imports, tests, theirs, limits, where)


def _example(row: Mapping[str, Any]) -> Example:
    tests = "\n".join(row["test_list"])
    content = (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:"
        f"\n\n{tests}"
    )
    return Example(
        id=f"MBPP/{row['task_id']}",
        messages=(Message(role="user", content=content),),
        reference=row["code"].replace("\r\n", "\n"),
        meta={"row": dict(row), "reply_column": "code"},
    )


def _free(source: str) -> list[str]:
    """Names that a source uses and does not set itself, in the order of its text."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return list(dict.fromkeys(node.id for node in names if node.id not in own))
