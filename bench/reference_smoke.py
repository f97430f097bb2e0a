"""Run each recipe of the reference on SmolLM2-135M-Instruct, a few rows of it: all stages, methods and benchmarks.

    make reference-smoke        (or: python bench/reference_smoke.py [RECIPE ...])

It shows that the recipes run, not how good their models are. Data that is not at hand is stood in for by CodeAlpaca.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sdft
from sdft.data import unfetched
from sdft.inspection import recipe_files
from sdft.rundir import read_json

STAND_IN = "bench/codealpaca/code_alpaca_2k.jsonl"
FEW = [
    "model=HuggingFaceTB/SmolLM2-135M-Instruct",
    "data.limit=8",
    "distill.max_new_tokens=32",
    "train.epochs=1",
    "train.max_length=256",
    "train.bf16=null",  # off where the processor only emulates it
    "evaluate.sampling.max_new_tokens=16",
]
ROWS = 2
"""Of each benchmark, and of each of the harness's tasks."""
TASKS = ["truthfulqa_mc1", "arc_easy", "hellaswag", "winogrande"]
"""One of each family of `knowledge`. MMLU, whose 57 subjects are a task each, is asked of the seed alone."""


def names() -> list[str]:
    """The reference's recipes."""
    return [name for name in recipe_files() if name.startswith("reference/")]


def small(entry: dict[str, Any], trains: bool) -> dict[str, Any]:
    """A benchmark's settings with a few rows and short replies."""
    entry = {**entry, "limit": ROWS}
    if entry.get("sampling"):
        entry["sampling"] = {**entry["sampling"], "max_new_tokens": 16}
    return entry | ({"tasks": TASKS if trains else ["mmlu", *TASKS]} if entry["name"] == "knowledge" else {})


def smoke(name: str, folder: Path) -> str:
    """Run one recipe; returns what it left, in a line."""
    recipe = sdft.load_recipe(name)
    few = [item for item in FEW if recipe.data or not item.startswith("data.")]
    tree = sdft.load_recipe(name, few).model_dump(mode="json")
    tree["output_dir"] = str((folder / name).parent)
    if recipe.data and unfetched(sdft.DataConfig(dataset=tree["data"]["dataset"])):
        tree["data"]["dataset"] = STAND_IN
    tree["evaluate"]["benchmarks"] = [small(entry, bool(recipe.methods)) for entry in tree["evaluate"]["benchmarks"]]
    started = time.monotonic()
    result = sdft.run(tree)
    rows = {b.label or b.name: len(b.examples()) for b in result.recipe.evaluate.benchmarks}
    for method in tree["methods"]:
        assert (result.path / "train" / method / "adapter_model.safetensors").is_file(), f"{name}: no {method} adapter"
    for model in ("seed", *tree["methods"]):
        for label, wanted in rows.items():
            assert read_json(result.path / "eval" / model / label / "scores.json")["n"] == wanted, f"{name}: {label}"
    assert result.report.is_file(), f"{name}: no report"
    line = f"{name:<30} {time.monotonic() - started:4.0f} s"
    if not tree["methods"]:
        return f"{line}   the seed alone"
    summary = read_json(result.path / "select/summary.json")
    rewritten = f"{summary['rewritten']} of {summary['examples']} rewritten"
    return f"{line}   {rewritten}   {tree['data']['dataset']}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        lines = [smoke(name, Path(temporary)) for name in sys.argv[1:] or names()]
    print("\n".join(lines))
