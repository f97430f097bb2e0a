"""Small runs that need no model, and what makes two run folders comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdft.engines import ScriptedSettings
from sdft.models import ModelConfig
from sdft.prompts import PromptConfig, Renderer
from sdft.records import Example, Message, Rewrite
from sdft.rendering import Prompter

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TIMINGS = {
    "seconds", "durations", "created", "hashes", "tokens_per_second", "peak_memory_bytes", "total_flos",
    "train_runtime", "train_samples_per_second", "train_steps_per_second",
}  # fmt: skip
"""What may differ between a run that was killed and one that was not. Hashes: of the files compared here anyway."""


def example(number: int) -> Example:
    """`3 plus 4 is`, with a bare number for an answer."""
    turn = Message(role="user", content=f"{number} plus 4 is")
    return Example(id=f"e{number}", messages=(turn,), reference=str(number + 4))


def rewrite(number: int, text: str, candidate: int = 0, **more: Any) -> Rewrite:
    """A finished rewrite of `example(number)`."""
    fields = {"finish": "stop", "prompt_tokens": 5, "tokens": len(text.split())} | more
    return Rewrite(example_id=f"e{number}", candidate=candidate, text=text, **fields)


def verbatim_prompter(**settings: Any) -> Prompter:
    """A prompter that needs no model."""
    template = "Q: {{ instruction }} A: {{ reference }} Again:"
    return Prompter(Renderer(PromptConfig(style="verbatim", distill=template, train="alpaca", **settings)), None)


def scripted(**settings: Any) -> Any:
    """The scripted engine, opened."""
    return ScriptedSettings(**settings).open(ModelConfig(name="none"))


def write_data(path: Path, rows: int) -> Path:
    """A JSON lines dataset: additions with a bare number for an answer."""
    lines = [{"instruction": f"{i} plus 4 is", "output": str(i + 4), "source": "made"} for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def scripted_recipe(folder: Path, rows: int = 12, **changes: Any) -> dict[str, Any]:
    """A recipe that runs without a model: nothing is trained, and every reply is scripted."""
    data = folder / "data.jsonl"
    if not data.exists():
        write_data(data, rows)
    tree: dict[str, Any] = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": "none",
        "data": {"dataset": str(data)},
        "prompt": {"style": "verbatim", "distill": "alpaca_distill_using", "train": "alpaca"},
        "distill": {"engine": {"name": "scripted", "default": "It is {seed}."}, "candidates": 2},
        "select": {"checks": ["leak", "number"]},
        "methods": [],
        "evaluate": {"engine": "scripted", "benchmarks": [{"name": "drift", "limit": 5}]},
    }
    return tree | changes


def contents(run: Path) -> dict[str, Any]:
    """Relative path → what stands in it, without timings. Rewrites are a set: they come as they finish."""
    out: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name.startswith("report/") or name == ".lock" or "checkpoint-" in name:
            continue
        if name == "distill/rewrites.jsonl":
            out[name] = sorted(path.read_text(encoding="utf-8").splitlines())
        elif path.suffix == ".json":
            out[name] = _without_timings(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix != ".png":
            out[name] = path.read_bytes()
    return out


def _without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_timings(item) for key, item in value.items() if key not in TIMINGS}
    return [_without_timings(item) for item in value] if isinstance(value, list) else value
