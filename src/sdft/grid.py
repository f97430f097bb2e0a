"""One recipe at many settings: a grid over its keys and over seeds. What the settings do not touch is made once.

runs/<name>-sweep/
  train.distilled_fraction=0.5,seed=1/    a run folder for each point
  sweep.json  sweep.md  sweep.html        table and curves over those that are finished
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sdft.console import Console
from sdft.errors import RecipeError
from sdft.models import identify
from sdft.needs import lacking
from sdft.order import Stage, plan
from sdft.pipeline import RunResult, find, run
from sdft.recipe import Recipe
from sdft.report.sweep import Sweep, SweepPoint, aggregate, named, render_html, render_markdown, told
from sdft.rundir import RunDir, atomic_write, digest, write_json

AnyRecipe = Recipe | str | Path | Mapping[str, Any]
LONGEST = 120
"""Characters of a run folder's name."""


@dataclass(frozen=True)
class SweepResult:
    """Where a sweep stands when all its runs are finished."""

    path: Path
    """The sweep's folder."""
    runs: tuple[RunResult, ...]
    """In the grid's order: the last key changes fastest."""
    table: Sweep

    @property
    def report(self) -> Path:
        """The table and the curves, for a browser."""
        return self.path / "sweep.html"


@dataclass(frozen=True)
class Point:
    """One place of the grid, resolved."""

    settings: Mapping[str, str]
    """Key to value, as they were written."""
    recipe: Recipe


def sweep(
    recipe: AnyRecipe,
    grid: Mapping[str, Sequence[Any]],
    overrides: Iterable[str] = (),
    console: Console | None = None,
) -> SweepResult:
    """Run a recipe at every combination of values, such as `{"train.distilled_fraction": [0, 0.5, 1], "seed": [0, 1]}`.

    Stages that a point has in common with one that is finished, or with the recipe's own run, are taken from there.
    Scores are means over seeds. Interrupted and called again, it goes on.

    Raises RecipeError, before anything runs, with every value that does not fit; and whatever `run` raises.
    """
    written = {key: [_written(value) for value in values] for key, values in grid.items()}
    return sweep_written(recipe, written, overrides, console)


def sweep_written(
    recipe: AnyRecipe, grid: Mapping[str, Sequence[str]], overrides: Iterable[str] = (), console: Console | None = None
) -> SweepResult:
    """As `sweep`, with values as text."""
    console, overrides = console or Console(), list(overrides)
    base, _ = find(recipe, overrides)
    folder = Path(base.output_dir) / f"{base.name}-sweep"
    points = resolve_grid(recipe, grid, overrides, folder)
    weights: dict[str, dict[str, str]] = {}
    runs: list[RunResult] = []
    with RunDir(folder):
        for number, point in enumerate(points, 1):
            console.say(f"sweep, run {number} of {len(points)}: {named(dict(point.settings))}")
            donors = [base.path, *(other.recipe.path for other in points if other is not point)]
            share(point.recipe, donors, weights, console)
            runs.append(run(point.recipe, console=console))
            table = _write(folder, base.name, points, len(runs))
    return SweepResult(folder, tuple(runs), table)


def _written(value: Any) -> str:
    """A value as it would stand after `key=`."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_settings(settings: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """`a=1,2 b=3` → the grid {a: [1, 2]} and the overrides [b=3]. Commas within brackets or quotes part nothing."""
    grid: dict[str, list[str]] = {}
    overrides = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        values = _parts(text)
        if not equals or len(values) < 2:
            overrides.append(setting)
        elif key in grid:
            raise RecipeError(f"{key}: given twice; name all its values in one list")
        else:
            grid[key] = values
    if not grid:
        raise RecipeError("nothing to sweep over: give a key several values, such as train.distilled_fraction=0,0.5,1")
    return grid, overrides


def _parts(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        depth += (sign in "[{") - (sign in "]}") if not quote else 0
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


# The grid


def resolve_grid(
    recipe: AnyRecipe, grid: Mapping[str, Sequence[str]], overrides: Sequence[str], folder: Path
) -> list[Point]:
    """Every point's recipe, and nothing run. Raises RecipeError with all values that do not fit."""
    problems: list[str] = []
    for key, values in grid.items():
        if key in ("name", "output_dir"):
            problems.append(f"{key}: each run of a sweep gets its own; sweep over other keys")
            continue
        if not values:
            problems.append(f"{key}: no values")
        for value in values:
            problems += _problems(recipe, overrides, [f"{key}={value}"])
    if problems:
        raise RecipeError.of("sweep", list(dict.fromkeys(problems)))
    points: list[Point] = []
    seen: dict[str, str] = {}
    for values in product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        place = [f"output_dir={json.dumps(str(folder))}", f"name={json.dumps(_folder_name(settings))}"]
        found = _problems(recipe, overrides, [*(f"{key}={value}" for key, value in settings.items()), *place])
        if found:
            problems += found
            continue
        resolved, _ = find(recipe, [*overrides, *(f"{key}={value}" for key, value in settings.items()), *place])
        problems += [f"{named(settings)}: {what}" for what in lacking(resolved)]
        same = digest(resolved.model_dump(mode="json", exclude={"name"}))
        if same in seen:
            problems.append(f"{named(settings)}: the same settings as {seen[same]}")
        seen[same] = named(settings)
        points.append(Point(settings, resolved))
    if problems:
        raise RecipeError.of("sweep", list(dict.fromkeys(problems)))
    return points


def _problems(recipe: AnyRecipe, overrides: Sequence[str], settings: Sequence[str]) -> list[str]:
    try:
        find(recipe, [*overrides, *settings])
    except RecipeError as error:
        shown = " ".join(setting for setting in settings if not setting.startswith(("name=", "output_dir=")))
        return [f"{shown}: {problem}" for problem in error.problems or (str(error),)]
    return []


def _folder_name(settings: Mapping[str, str]) -> str:
    """`train.distilled_fraction=0.5,seed=1`; with a hash where signs had to go or it would be over-long."""
    text = ",".join(f"{key}={value}" for key, value in settings.items())
    plain = re.sub(r"[^\w.,=+-]+", "_", text)[:LONGEST]
    return plain if plain == text else f"{plain}-{digest(text)[:8]}"


# Sharing


def share(
    recipe: Recipe, donors: Iterable[Path], weights: dict[str, dict[str, str]], console: Console
) -> tuple[str, ...]:
    """Take stages that are not begun from other runs that did them for the same inputs, files and weights.

    `weights` remembers which files a model's name stands for. Returns the stages' names. Weights are hard links, for
    they are only ever replaced as a whole; all else is copied.
    """
    others = [RunDir(path) for path in donors if (path / "stages").is_dir()]
    taken = []
    with RunDir(recipe.path) as here:
        for stage in plan(recipe):
            if stage.name == "report" or here.stage_state(stage.name) is not None:
                continue  # a report names its run
            donor = next((other for other in others if _has(other, here, recipe, stage, weights)), None)
            if donor is not None:
                _take(stage.name, donor, here)
                taken.append(stage.name)
                console.say(f"{stage.name}: taken from {donor.path.name}")
    return tuple(taken)


def _has(other: RunDir, here: RunDir, recipe: Recipe, stage: Stage, weights: dict[str, dict[str, str]]) -> bool:
    """Whether another run finished this stage, from the same files as stand here."""
    if not other.is_finished(stage.name, stage.inputs):
        return False
    state = other.stage_state(stage.name) or {}
    for before in stage.after:
        there, own = other.stage_state(before) or {}, here.stage_state(before) or {}
        if not own.get("finished") or own.get("hashes") != there.get("hashes"):
            return False
    if state.get("weights"):
        name = digest(recipe.model.model_dump(mode="json"))
        if name not in weights:
            weights[name] = identify(recipe.model)
        if state["weights"] != weights[name]:
            return False
    return all((other / file).is_file() for file in state["hashes"])


def _take(stage: str, donor: RunDir, here: RunDir) -> None:
    state = donor.stage_state(stage) or {}
    for file in state["hashes"]:
        target = here / file
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.unlink(missing_ok=True)
        if target.suffix == ".safetensors":
            try:
                os.link(donor / file, part)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(donor / file, part)
        else:
            shutil.copyfile(donor / file, part)
        part.replace(target)
    write_json(here.stage_file(stage), {**state, "shared_from": donor.path.name})


# The table


def _write(folder: Path, name: str, points: Sequence[Point], finished: int) -> Sweep:
    """`sweep.json`, `sweep.md` and `sweep.html` over the points that are finished."""
    places = [
        SweepPoint(
            settings={key: value for key, value in point.settings.items() if key != "seed"},
            seed=point.recipe.seed,
            run=point.recipe.name,
            finished=number < finished,
        )
        for number, point in enumerate(points)
    ]
    methods = dict.fromkeys(method for point in points for method in point.recipe.methods)
    table = Sweep(
        name=name,
        keys=[key for key in points[0].settings if key != "seed"],
        seeds=list(dict.fromkeys(point.recipe.seed for point in points)),
        points=places,
        scores=aggregate(folder, places, methods),
    )
    write_json(folder / "sweep.json", table.model_dump())
    for file, text in (("sweep.md", render_markdown(table)), ("sweep.html", render_html(table))):
        with atomic_write(folder / file) as out:
            out.write(text)
    return table


def show_table(table: Sweep, console: Console) -> None:
    """Print the main metrics: a row for each setting, a column for each model."""
    for measure in (m for m in table.measures if m.main):
        rows = [
            [named(settings), *(told(table.at(settings, m, measure.benchmark, measure.metric)) for m in table.models)]
            for settings in table.settings
        ]
        console.table(f"{measure.benchmark}, {measure.metric}", ["", *table.models], rows)
