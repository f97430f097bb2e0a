"""A recipe: YAML and `key=value` → typed settings, with every error at once.

Values come from defaults, then the recipes that the file extends, then the YAML file, then `key=value` from the
command line. A plain string stands for `{name: string}` where a section has a name: models, engines, checks and
benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sdft.errors import RecipeError
from sdft.recipe.files import apply_override, copied, expand_names, extended, place_of, read_yaml, recipe_file
from sdft.recipe.problems import prompt_problems, sound_sections, validated
from sdft.recipe.settings import (
    METHODS,
    AnalyzeConfig,
    DistillConfig,
    EvaluateConfig,
    LoraConfig,
    Method,
    Recipe,
    SelectConfig,
    TrainConfig,
)

__all__ = [
    "METHODS",
    "AnalyzeConfig",
    "DistillConfig",
    "EvaluateConfig",
    "LoraConfig",
    "Method",
    "Recipe",
    "SelectConfig",
    "TrainConfig",
    "dump_recipe",
    "load_recipe",
    "recipe_file",
]


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML file or a mapping, with `key=value` overrides in dotted form.

    A file goes by its path or, in `recipes/` and among those shipped, by its bare name, such as `reference/gsm8k`.
    `extends: base.yaml`, or a list, puts the recipe on top of others: paths relative to the recipe's own file, or the
    names of shipped ones. Later ones win, mappings are merged and lists replaced. A section with another `name` is
    another thing and replaced as a whole; a base's own run name is left out.

    Raises RecipeError with all problems found, each with its key and, for a misspelt one, the likely key.
    """
    problems: list[str] = []
    if isinstance(source, Mapping):
        where = "recipe"
        tree, places = extended(copied(source), {}, ())
    else:
        path = recipe_file(source)
        where = str(path)
        tree, places = extended(*read_yaml(path), (path,))
        tree.setdefault("name", path.stem)
    for override in overrides:
        problem = apply_override(tree, override)
        if problem:
            problems.append(problem)
    if not tree.get("name") and isinstance(source, Mapping):
        tree["name"] = "run"
    expand_names(tree)
    recipe, found, mended = validated(tree)
    problems += [*found, *prompt_problems(mended)]
    if problems or recipe is None:
        problems = [problem + place_of(problem, places, overrides) for problem in problems]
        raise RecipeError.of(where, problems, sound_sections(mended))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    tree = recipe.model_dump(mode="json")
    text: str = yaml.dump(tree, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
