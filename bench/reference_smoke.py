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
from sdft.data import missing
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
"""Of each benchmark."""


def names() -> list[str]:
    """The reference's recipes that train."""
    return [name for name in recipe_files() if name.startswith("reference/") and name != "reference/seed"]


def small(entry: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's settings with a few rows and short replies; one task where it has many."""
    entry = {**entry, "limit": ROWS}
    if entry.get("sampling"):
        entry["sampling"] = {**entry["sampling"], "max_new_tokens": 16}
    return entry | ({"tasks": ["arc_easy"]} if entry["name"] == "knowledge" else {})


def smoke(name: str, folder: Path) -> str:
    """Run one recipe; returns what it left, in a line."""
    tree = sdft.load_recipe(name, FEW).model_dump(mode="json")
    tree["output_dir"] = str((folder / name).parent)
    if missing(sdft.DataConfig(dataset=tree["data"]["dataset"])):
        tree["data"]["dataset"] = STAND_IN
    tree["evaluate"]["benchmarks"] = [small(entry) for entry in tree["evaluate"]["benchmarks"]]
    started = time.monotonic()
    result = sdft.run(tree)
    labels = [entry["label"] or entry["name"] for entry in tree["evaluate"]["benchmarks"]]
    for method in tree["methods"]:
        assert (result.path / "train" / method / "adapter_model.safetensors").is_file(), f"{name}: no {method} adapter"
    for model in ("seed", *tree["methods"]):
        for label in labels:
            assert read_json(result.path / "eval" / model / label / "scores.json")["n"] == ROWS, f"{name}: {label}"
    assert result.report.is_file(), f"{name}: no report"
    summary = read_json(result.path / "select/summary.json")
    rewritten = f"{summary['rewritten']} of {summary['examples']} rewritten"
    return f"{name:<30} {time.monotonic() - started:4.0f} s   {rewritten}   {tree['data']['dataset']}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        lines = [smoke(name, Path(temporary)) for name in sys.argv[1:] or names()]
    print("\n".join(lines))
