"""What the tests of programs share."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdft.benchmarks._code import CodeBenchmark
from sdft.records import Example, Verdict
from sdft.sandbox import problem

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def need_sandbox() -> None:
    """Skip the test where no sandbox works."""
    why = problem()
    if why:
        pytest.skip(why)


def verdicts(benchmark: CodeBenchmark, replies: Sequence[tuple[Example, str]]) -> list[Verdict]:
    """Judge two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [verdict for verdict, _ in pool.map(lambda item: benchmark.judge(*item), replies)]


def one_edit_off(source: str) -> str | None:
    """The source with its first comparison turned round; None where it compares nothing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            node.ops[0] = FLIPPED[type(node.ops[0])]()
            return ast.unparse(tree)
    return None
