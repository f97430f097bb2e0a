"""Fine-tune language models without forgetting: self-distillation fine-tuning, from dataset to report.

A whole run, as `sdft run` does it:

    import sdft
    result = sdft.run("recipes/demo.yaml", ["train.epochs=1"])
    print(result.report)

Or a step at a time on plain objects; ten rows distilled in a notebook:

    import sdft
    examples = sdft.load_examples("gsm8k_train", limit=10)
    rewrites = sdft.distill(examples, model="HuggingFaceTB/SmolLM2-135M-Instruct")
    choices = sdft.select(examples, rewrites, checks=["leak", "number"])
    print(choices[0].verdict, choices[0].response)

Importing this is cheap: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdft.api import analyze, build_report, distill, evaluate, select, train
    from sdft.data import DataConfig, load_examples
    from sdft.engines import Sampling
    from sdft.errors import (
        BenchmarkError,
        DataError,
        EngineError,
        ModelError,
        PromptError,
        RecipeError,
        RunError,
        ScoringError,
        SdftError,
    )
    from sdft.grid import SweepResult, sweep
    from sdft.models import ModelConfig
    from sdft.pipeline import RunResult, run
    from sdft.prompts import PromptConfig
    from sdft.recipe import Recipe, TrainConfig, dump_recipe, load_recipe
    from sdft.records import Choice, Comparison, Example, Message, Prediction, Rewrite, Score, Verdict
    from sdft.serving import serve
    from sdft.untrained import eval_recipe

__all__ = [
    "BenchmarkError",
    "Choice",
    "Comparison",
    "DataConfig",
    "DataError",
    "EngineError",
    "Example",
    "Message",
    "ModelConfig",
    "ModelError",
    "Prediction",
    "PromptConfig",
    "PromptError",
    "Recipe",
    "RecipeError",
    "Rewrite",
    "RunError",
    "RunResult",
    "Sampling",
    "Score",
    "ScoringError",
    "SdftError",
    "SweepResult",
    "TrainConfig",
    "Verdict",
    "__version__",
    "analyze",
    "build_report",
    "distill",
    "dump_recipe",
    "eval_recipe",
    "evaluate",
    "load_examples",
    "load_recipe",
    "run",
    "select",
    "serve",
    "sweep",
    "train",
]

_HOMES = {
    "sdft.api": ("analyze", "build_report", "distill", "evaluate", "select", "train"),
    "sdft.data": ("DataConfig", "load_examples"),
    "sdft.engines": ("Sampling",),
    "sdft.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "sdft.models": ("ModelConfig",),
    "sdft.pipeline": ("RunResult", "run"),
    "sdft.prompts": ("PromptConfig",),
    "sdft.recipe": ("Recipe", "TrainConfig", "dump_recipe", "load_recipe"),
    "sdft.records": ("Choice", "Comparison", "Example", "Message", "Prediction", "Rewrite", "Score", "Verdict"),
    "sdft.serving": ("serve",),
    "sdft.untrained": ("eval_recipe",),
    "sdft.grid": ("SweepResult", "sweep"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("sdft")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'sdft' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
