"""A recipe that measures a model which was not trained here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdft.benchmarks import AnyBenchmark
from sdft.errors import RecipeError, did_you_mean
from sdft.inspection import members
from sdft.models import ModelConfig, lacking
from sdft.pipeline import is_run
from sdft.recipe import Recipe, load_recipe, recipe_file

RECIPE = "eval"
"""The shipped recipe that says what is measured, and how."""


def is_recipe(argument: str) -> bool:
    """Whether `sdft eval` is asked for a recipe or a run, rather than a model. Raises RecipeError where for neither."""
    path = Path(argument)
    if is_run(path) or (recipe_file(argument).is_file() and path.suffix != ".gguf"):
        return True
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"{path}: no such recipe; `sdft list recipes` shows those that come with sdft")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise RecipeError(f"{path}: an adapter; name the model that it was made for: sdft eval MODEL --adapter {path}")
    why = lacking(ModelConfig(name=argument))
    if why:
        raise RecipeError(f"{argument}: neither a recipe, nor a run's folder, nor a model ({why})")
    return False


def eval_recipe(
    model: str,
    *,
    benchmarks: Sequence[str] = (),
    adapter: str | None = None,
    limit: int | None = None,
    overrides: Iterable[str] = (),
) -> Recipe:
    """A recipe that trains nothing and measures `model` (a hub name, a folder, a GGUF file); `sdft.run` runs it.

    What is measured stands in the shipped recipe `eval`; `benchmarks` names some of it, or others, and `limit` takes
    the first rows of each. The run is named after the model, and the adapter where there is one.
    Raises RecipeError.
    """
    name = Path(model).expanduser()
    named = [name.stem if name.suffix == ".gguf" else name.resolve().name if name.is_dir() else name.name]
    named += [Path(adapter).resolve().name] if adapter else []
    tree: dict[str, Any] = {
        "extends": str(recipe_file(RECIPE)),
        "name": "-".join(part.lstrip(".") for part in named),
        "model": {"name": model, "adapter": adapter},
    }
    wanted = [entry.model_dump() for entry in load_recipe(tree).evaluate.benchmarks]
    if benchmarks:
        known = list(dict.fromkeys([*members(AnyBenchmark), *(entry["label"] or entry["name"] for entry in wanted)]))
        if unknown := [name for name in benchmarks if name not in known]:
            raise RecipeError(f"--benchmarks: no '{unknown[0]}'{did_you_mean(unknown[0], known)}")
        wanted = [
            entry
            for name in benchmarks
            for entry in [entry for entry in wanted if name in (entry["name"], entry["label"])] or [{"name": name}]
        ]
    if limit is not None:
        wanted = [{**entry, "limit": limit} for entry in wanted]
    return load_recipe({**tree, "evaluate": {"benchmarks": wanted}}, overrides)
