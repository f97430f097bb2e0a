"""The stages in order: skipped where they are finished, resumed where they are not.

data ─► distill ─► select ─► train/sdft ─► eval/sdft ─┐
  └───────────────────────► train/sft ──► eval/sft ───┼─► compare ─► report
                                          eval/seed ──┘         (and analyze, before the report)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.benchmarks import OwnDataset
from sdft.cautions import at_start, overlap_lines, overlaps
from sdft.console import Console
from sdft.data.origin import SOURCES, SourceFile, changed
from sdft.errors import RecipeError, RunError
from sdft.manifest import write_manifest
from sdft.models import identify, pick_device
from sdft.needs import forecasts, lacking, lacking_for, lacking_of, measures_model, with_engines
from sdft.order import Stage, plan, wanted_stages, with_followers
from sdft.recipe import Recipe, dump_recipe, load_recipe, recipe_file
from sdft.records import Example
from sdft.rundir import Jsonl, RunDir, atomic_write, read_jsonl
from sdft.training.ranks import agree, rank, world_size


@dataclass(frozen=True)
class RunResult:
    """Where a run stands."""

    recipe: Recipe
    """As resolved."""
    path: Path
    """The run folder."""
    done: tuple[str, ...]
    """The stages that this call worked on; empty where all were finished before."""

    @property
    def report(self) -> Path:
        """The report, for a browser."""
        return self.path / "report/report.html"


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    console: Console | None = None,
    *,
    redo: str | None = None,
    only: str | None = None,
) -> RunResult:
    """Run a recipe, or go on with it; `recipe` may also be a run folder. Returns at once where it is finished.

    `redo` names a stage whose files are deleted first, with all that was made from them. `only` is `distill`,
    `select`, `train`, `eval`, `analyze` or `report`, to do that much alone, from what the stages before it left.

    Called by each of several processes that torchrun or accelerate started, with `only="train"`, they train together.

    Raises RecipeError; RunError where the run folder is locked or holds work for other settings; and whatever the
    stages raise. What is done by then is kept, and the same call goes on from there.
    """
    recipe, folder = find(recipe, overrides)
    console = console or Console()
    recipe, chosen = with_engines(recipe)
    for line in chosen:
        console.say(line)
    stages = plan(recipe)
    if world_size() > 1 and only != "train":
        raise RunError("several processes work together in `sdft train` alone; start everything else as one process")
    if rank() > 0:
        return RunResult(recipe, folder, _follow(recipe, folder, stages))
    if only == "report" and not is_run(folder):
        raise RunError(f"{folder}: no run stands here, so there is nothing to report; `sdft run` the recipe first")
    with RunDir(folder) as run_dir:
        anew = [] if redo is None else with_followers(stages, redo)
        wanted = wanted_stages(run_dir, stages, only)
        if anew and anew[0] not in wanted:
            raise RunError(f"--redo {redo}: `sdft {only}` does not do that stage; use `sdft run`")
        for stage in wanted:
            if stage not in anew:
                run_dir.check(stage.name, stage.inputs, stage.mild)
        _refuse_other_data(recipe, run_dir, {stage.name.split("/")[0] for stage in anew})
        for stage in anew:
            run_dir.forget(stage.name, run_dir / stage.files)
        todo: list[Stage] = []
        for stage in wanted:
            stale = only == "report" or (stage.cheap and any(before.name in stage.after for before in todo))
            if stale or not run_dir.is_finished(stage.name, stage.inputs):
                todo.append(stage)
        _refuse_to_start_without(recipe, todo)
        if todo:
            with atomic_write(run_dir / "recipe.yaml") as file:
                file.write(dump_recipe(recipe))
        if only == "train":
            agree([stage.name for stage in todo], _on_cpu(recipe))
        skipped = [stage.name for stage in wanted if stage not in todo]
        if todo and skipped:
            console.say(f"finished before: {', '.join(skipped)}")
        for line in forecasts(recipe) if any(stage.name.startswith("eval/") for stage in todo) else ():
            console.say(line)
        for line in at_start(recipe) if any(stage.name != "report" for stage in todo) else ():
            console.warn(line)
        with_data = next((stage for stage in todo if stage.name != "data"), None)

        def record() -> None:
            write_manifest(run_dir, recipe, [stage.name for stage in stages], stale_lines(run_dir, stages, todo))

        for stage in todo:
            if stage.name == "report":
                record()  # the report shows the manifest's notes
            if stage is with_data:
                _warn_of_overlaps(recipe, run_dir, todo, console)
            _work(stage, recipe, run_dir, console, _weights(stage, recipe, run_dir, stages))
            record()
        for line in stale_lines(run_dir, stages, todo):
            console.warn(line)
    return RunResult(recipe, folder, tuple(stage.name for stage in todo))


def stale_lines(run_dir: RunDir, stages: Iterable[Stage], done: Iterable[Stage] = ()) -> list[str]:
    """Which finished stages were made with other settings than the run's recipe has now, but those just `done`."""
    found: dict[str, list[str]] = {}
    just = {stage.name for stage in done}
    for stage in stages:
        if stage.name in just or not run_dir.is_complete(stage.name):
            continue
        if keys := ", ".join(run_dir.changes(stage.name, stage.inputs)):
            found.setdefault(keys, []).append(stage.name)
    return [
        f"{', '.join(names)}: made with other settings than the recipe has now ({keys}); `sdft run` tells how to go on"
        for keys, names in found.items()
    ]


def _follow(recipe: Recipe, folder: Path, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Train along with rank 0, which holds the run's lock and writes its files. Returns what was done."""
    names = tuple(agree((), _on_cpu(recipe)))
    for stage in stages:
        if stage.name in names:
            stage.work(recipe, RunDir(folder), Console(quiet=True))
    return names


def _on_cpu(recipe: Recipe) -> bool:
    return world_size() > 1 and pick_device(recipe.model.device).type == "cpu"


def _warn_of_overlaps(recipe: Recipe, run_dir: RunDir, todo: Sequence[Stage], console: Console) -> None:
    """Say which test rows stand in the training data, before hours are spent on them."""
    data = run_dir / "data/train.jsonl"
    if recipe.methods and data.is_file() and any(stage.name.startswith("eval/") for stage in todo):
        for line in overlap_lines(overlaps(recipe, Jsonl(data, Example))):
            console.warn(line)


def _refuse_other_data(recipe: Recipe, run_dir: RunDir, anew: set[str]) -> None:
    """Raise RunError where a dataset's file was changed after this run read it. `anew`: the kinds to be redone."""
    read = []
    if recipe.data is not None and run_dir.is_complete("data"):
        read.append((recipe.data, run_dir / SOURCES, "data"))
    for benchmark in recipe.evaluate.benchmarks:
        if isinstance(benchmark, OwnDataset):
            label = benchmark.called
            found = run_dir.path.glob(f"eval/*/{label}/{Path(SOURCES).name}")
            read += [(benchmark.data, known, "eval") for known in sorted(found)]
    for config, known, stage in read:
        if stage in anew:
            continue
        path = changed(config, read_jsonl(known, SourceFile))
        if path is not None:
            raise RunError(
                f"{run_dir.path}: {path} has changed since this run read it. Give this run another name with "
                f"name=NAME, bring the file back, or make anew what came of it with `sdft run … --redo {stage}`"
            )


def _refuse_to_start_without(recipe: Recipe, todo: Sequence[Stage]) -> None:
    problems = lacking_for(recipe, {stage.name.split("/")[0] for stage in todo})
    if problems:
        raise RecipeError("\n  - ".join(["the recipe needs what is not here", *problems]), tuple(problems))


def _weights(stage: Stage, recipe: Recipe, run_dir: RunDir, stages: Sequence[Stage]) -> dict[str, str] | None:
    """The model files that a stage is about to load; None for none.

    Raises RunError where the run's other stages were made with other files under the same name.
    """
    kind = stage.name.split("/")[0]
    engine = {"distill": recipe.distill.engine, "eval": recipe.evaluate.engine}.get(kind)
    if kind == "analyze" and recipe.analyze.nll:
        engine = recipe.evaluate.engine
    measured = kind == "eval" and measures_model(recipe)
    if kind != "train" and not measured and (engine is None or engine.name != "transformers"):
        return None
    weights = identify(recipe.model)
    for other in stages:
        known = (run_dir.stage_state(other.name) or {}).get("weights")
        if known and known != weights:
            raise RunError(
                f"{run_dir.path}: stage '{other.name}' was made with other weights of {recipe.model.name} than are "
                f"found now ({_told(known)}; now {_told(weights)}). Bring those back, or give this run another name "
                "with name=NAME"
            )
    return weights


def _told(weights: Mapping[str, str]) -> str:
    keys = ("source", "commit", "sha256", "adapter_sha256")
    return " ".join(weights[key][:12] for key in keys if key in weights)


def _work(stage: Stage, recipe: Recipe, run_dir: RunDir, console: Console, weights: Mapping[str, str] | None) -> None:
    started = time.monotonic()
    run_dir.claim(stage.name, stage.inputs, weights)
    notes = stage.work(recipe, run_dir, console)
    written = run_dir / stage.files
    files = [path for path in written.rglob("*") if path.is_file()] if written.is_dir() else [written]
    kept = [path for path in files if "checkpoint-" not in path.as_posix() and not path.name.startswith(".")]
    hashed = [] if stage.name == "report" else kept
    run_dir.finish(stage.name, stage.inputs, time.monotonic() - started, notes, kept, hashed)


def is_run(path: Path) -> bool:
    """Whether a run stands in this folder."""
    return (path / "recipe.yaml").is_file()


def find(recipe: Recipe | str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Recipe, Path]:
    """The resolved recipe and its run folder, from a recipe in any form or from a run folder."""
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        loaded = load_recipe(recipe, overrides)
        return loaded, loaded.path
    path = Path(recipe)
    if not is_run(path):
        if path.is_dir() and not recipe_file(path).is_file():
            raise RecipeError(f"{path}: a folder without recipe.yaml, so not a run folder; name a recipe file")
        loaded = load_recipe(path, overrides)
        return loaded, loaded.path
    loaded = load_recipe(path / "recipe.yaml", overrides)
    if loaded.name == load_recipe(path / "recipe.yaml").name:  # the folder may have been moved or renamed
        loaded = loaded.model_copy(update={"output_dir": str(path.resolve().parent), "name": path.resolve().name})
    return loaded, loaded.path


def check_all(recipe: Recipe | str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Recipe, Path]:
    """As `find`; data, models and packages that the recipe names are looked for, too, and all is told at once.

    Raises RecipeError with every problem found.
    """
    try:
        resolved, folder = find(recipe, overrides)
    except RecipeError as error:
        more = lacking_of(error.sound)
        if not more:
            raise
        raise RecipeError.of(str(recipe), [*error.problems, *more]) from None
    problems = lacking(resolved)
    if problems:
        raise RecipeError.of(resolved.name if isinstance(recipe, Recipe | Mapping) else str(recipe), problems)
    return resolved, folder
