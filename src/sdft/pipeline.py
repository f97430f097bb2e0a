"""The stages in order: skipped where they are finished, resumed where they are not.

data ─► distill ─► select ─► train/sdft ─► eval/sdft ─┐
  └───────────────────────► train/sft ──► eval/sft ───┼─► compare ─► report
                                          eval/seed ──┘         (and analyze, before the report)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdft.benchmarks import AnyBenchmark, HarnessBenchmark, OwnDataset
from sdft.benchmarks.drift import Drift
from sdft.cautions import at_start, overlap_lines, overlaps
from sdft.console import Console
from sdft.data import unfetched
from sdft.data.config import DataConfig
from sdft.data.origin import SOURCES, SourceFile, changed
from sdft.engines import AnyEngine, AutoSettings, OpenAISettings, RaySettings, VLLMSettings
from sdft.errors import ModelError, RecipeError, RunError, SdftError
from sdft.manifest import write_manifest
from sdft.models import ModelConfig, identify, pick_device, resolve
from sdft.models import lacking as model_lacking
from sdft.recipe import AnalyzeConfig, Method, Recipe, dump_recipe, load_recipe, recipe_file
from sdft.records import Example
from sdft.rendering import needs_tokenizer
from sdft.rundir import Jsonl, RunDir, atomic_write, read_jsonl
from sdft.training.ranks import agree, rank, world_size

SEED = "seed"
SPEED_ONLY = {
    "max_batch_size", "prefill_tokens", "replicas", "latency", "die_after", "batch_size", "base_url", "api_key_env",
    "max_concurrency", "timeout", "max_retries", "patience", "prompt_price", "completion_price",
}  # fmt: skip
"""Settings of engines and benchmarks that change how fast a run goes, not what comes of it; it goes on with others."""


JUDGING = ("judge_model", "orders", "difficulty")
"""Settings of benchmarks that bear on how finished replies are judged."""


TRACKERS = {"mlflow": "mlflow-skinny"}
"""Trackers whose package has another name than what is imported."""


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    after: tuple[str, ...]
    """The stages whose files it reads."""
    inputs: Mapping[str, Any]
    """The recipe's sections that its files depend on, its predecessors' included."""
    files: str
    """The folder or file that it writes, relative to the run."""
    work: Callable[[Recipe, RunDir, Console], Sequence[str]]
    """Does it and returns notes for the manifest. It finds by itself what an earlier call left done."""
    mild: Callable[[str, Any, Any], bool] = lambda *_: False
    """Whether a changed input (key, then, now) leaves its files usable, to be worked on further."""
    cheap: bool = False
    """Made anew whenever a stage before it was worked on."""


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
        anew = [] if redo is None else _with_followers(stages, redo)
        wanted = _wanted(run_dir, stages, only)
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
        for stage in todo:
            if stage is with_data:
                _warn_of_overlaps(recipe, run_dir, todo, console)
            _work(stage, recipe, run_dir, console, _weights(stage, recipe, run_dir, stages))
            write_manifest(run_dir, recipe, [stage.name for stage in stages])
    return RunResult(recipe, folder, tuple(stage.name for stage in todo))


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
            label = benchmark.label or benchmark.name
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
    """Say what is missing before hours of work, not after them."""
    kinds = {stage.name.split("/")[0] for stage in todo}
    problems = _unobtainable_data(recipe) if "data" in kinds else []
    if "train" in kinds:
        problems += [*_lacking_model(recipe.model), *_lacking_trackers(recipe.train.report_to)]
    elif "eval" in kinds and _measures_model(recipe):
        problems += _lacking_model(recipe.model)
    problems += [what for kind, what in _lacking_engines(recipe) if kind in kinds]
    if "eval" in kinds:
        problems += _unreadable_benchmarks(recipe) or _lacking_benchmarks(recipe.evaluate.benchmarks)
    if "analyze" in kinds:
        problems += _lacking_similarity(recipe.analyze) or _lacking_embedder(recipe)
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
    measured = kind == "eval" and _measures_model(recipe)
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
        sound = error.sound
        engines = {sound[key].engine.name for key in ("distill", "evaluate") if key in sound}
        without = bool(engines) and engines <= {"scripted", "openai"}
        more = [] if without else _lacking_model(sound.get("model"))
        more += _lacking_data(sound.get("data"))
        more += _lacking_benchmarks(sound["evaluate"].benchmarks) if "evaluate" in sound else []
        more += _lacking_similarity(sound.get("analyze"))
        if not more:
            raise
        raise RecipeError.of(str(recipe), [*error.problems, *more]) from None
    problems = lacking(resolved)
    if problems:
        raise RecipeError.of(resolved.name if isinstance(recipe, Recipe | Mapping) else str(recipe), problems)
    return resolved, folder


def lacking(recipe: Recipe) -> list[str]:
    """Data and packages that the recipe needs and that are not here, each with how to get it."""
    return [
        *(_lacking_model(recipe.model) if _loads_model(recipe) else []),
        *_lacking_data(recipe.data),
        *(what for _, what in _lacking_engines(recipe)),
        *_lacking_benchmarks(recipe.evaluate.benchmarks),
        *_lacking_similarity(recipe.analyze),
        *_lacking_trackers(recipe.train.report_to if recipe.methods else ()),
    ]


def _engines(recipe: Recipe) -> dict[str, AnyEngine]:
    """The kind of stage → the engine that it will open."""
    found: dict[str, AnyEngine] = {"distill": recipe.distill.engine} if recipe.data else {}
    return found | ({"eval": recipe.evaluate.engine} if recipe.evaluate.benchmarks else {})


def _loads_model(recipe: Recipe) -> bool:
    opened = _engines(recipe).values()
    return bool(recipe.methods) or any(needs_tokenizer(recipe.prompt, e) for e in opened) or _measures_model(recipe)


def _measures_model(recipe: Recipe) -> bool:
    """Whether a benchmark loads the model by itself, whatever the engine."""
    return any(isinstance(benchmark, HarnessBenchmark) for benchmark in recipe.evaluate.benchmarks)


def _lacking_engines(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The kind of stage that asks a server or runs vLLM, and what that takes."""
    for kind, engine in _engines(recipe).items():
        for what in engine.missing() if isinstance(engine, OpenAISettings | RaySettings | VLLMSettings) else ():
            yield kind, f"{'evaluate' if kind == 'eval' else kind}.engine: {what}"


def _lacking_model(model: ModelConfig | None) -> list[str]:
    found = model_lacking(model) if model else None
    return [f"model {found}"] if found else []


def _lacking_data(data: DataConfig | None) -> list[str]:
    from sdft.data import missing

    found = missing(data) if data else None
    return [f"data: {found}"] if found else []


def _lacking_benchmarks(benchmarks: Iterable[AnyBenchmark]) -> list[str]:
    return [f"benchmark '{b.label or b.name}': {what}" for b in benchmarks for what in b.missing()]


def _lacking_trackers(names: Iterable[str]) -> list[str]:
    """Experiment trackers that are packages of the same name."""
    return [
        f"train.report_to: the package {name} is not installed: pip install {TRACKERS.get(name, name)}"
        for name in names
        if name in ("wandb", "mlflow", "tensorboard", "comet_ml", "trackio") and find_spec(name) is None
    ]


def _unobtainable_data(recipe: Recipe) -> list[str]:
    """As `_lacking_data`, once what can be fetched has been."""
    from sdft.data import provide

    try:
        if recipe.data:
            provide(recipe.data)
    except SdftError as error:
        return [f"data: {error}"]
    return _lacking_data(recipe.data)


def _lacking_similarity(analyze: AnalyzeConfig | None) -> list[str]:
    """What a recipe that insists on similarity needs; one that does not gets a note where it is not measured."""
    from sdft.analysis.similarity import missing_packages

    if analyze is None or not analyze.similarity:
        return []
    problem = model_lacking(ModelConfig(name=analyze.embedder))
    found = [f"analyze.embedder: {problem}"] if problem else []
    return found + [f"analyze.similarity: {metric} needs {what}" for metric, what in missing_packages().items()]


def _lacking_embedder(recipe: Recipe) -> list[str]:
    """Fetches it, where the recipe insists on it: after hours of training is too late to learn that it is not there."""
    if recipe.analyze.similarity and recipe.methods and recipe.evaluate.benchmarks:
        try:
            resolve(ModelConfig(name=recipe.analyze.embedder))
        except ModelError as error:
            return [f"analyze.embedder: {error}"]
    return []


def _unreadable_benchmarks(recipe: Recipe) -> list[str]:
    found = []
    for benchmark in recipe.evaluate.benchmarks:
        try:
            benchmark.examples()
        except SdftError as error:
            found.append(f"benchmark '{benchmark.label or benchmark.name}': {error}")
    return found


def forecasts(recipe: Recipe) -> list[str]:
    """What the recipe will fetch, and ask of judge models and the hub: a line for each. Reads a judge's data."""
    models = 1 + len(recipe.methods)
    absent = unfetched(recipe.data) if recipe.data else None
    lines = [f"data: {absent}. `sdft run` tries to fetch it"] if absent else []
    for benchmark in recipe.evaluate.benchmarks:
        absent = benchmark.unfetched()
        told = f"{absent}. `sdft run` tries to fetch it" if absent else None
        told = told or benchmark.forecast(models, recipe.evaluate.sampling)
        lines += [f"benchmark '{benchmark.label or benchmark.name}': {told}"] if told else []
    return lines


def with_engines(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with the engine that `auto` comes to here, so that its run keeps to it, and a line on each choice.

    Raises EngineError where none fits.
    """
    lines = []
    for section in ("distill", "evaluate"):
        config = getattr(recipe, section)
        if isinstance(config.engine, AutoSettings):
            drifts = section == "evaluate" and any(isinstance(b, Drift) for b in recipe.evaluate.benchmarks)
            engine, why = config.engine.choose(recipe.model, "distributions" if drifts else "replies")
            recipe = recipe.model_copy(update={section: config.model_copy(update={"engine": engine})})
            lines.append(f"{section}.engine auto: {why}")
    return recipe, list(dict.fromkeys(lines))


# Which stages


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order."""
    tree = recipe.model_dump(mode="json")
    for section in ("distill", "evaluate"):
        engine = tree[section]["engine"]
        engine = engine.get("inner", engine)  # ray changes where it runs, not what comes of it
        tree[section]["engine"] = {key: value for key, value in engine.items() if key not in SPEED_ONLY}
    del tree["evaluate"]["expected_gain"]  # nothing is made with it
    tree["evaluate"]["benchmarks"] = {
        b["label"] or b["name"]: {key: value for key, value in b.items() if key not in SPEED_ONLY}
        for b in tree["evaluate"]["benchmarks"]
    }

    if recipe.prompt.thinking == "auto":  # as ever: folders of runs that know no thinking stay valid
        del tree["prompt"]["thinking"]

    def reads(sections: str, prompt: str, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """These sections and prompt keys of the recipe, beside what the stages before it read."""
        before = before or {}
        keys = [*prompt.split(), *(key for key in ("thinking",) if key in tree["prompt"])]
        parts = {**before.get("prompt", {}), **{key: tree["prompt"][key] for key in keys}}
        return {**before, **{key: tree[key] for key in sections.split()}, "prompt": parts}

    data = {"data": tree["data"]}
    rewritten = reads("model distill seed", "style system distill reply_prefix max_prompt_tokens on_long", data)
    chosen = {**rewritten, "select": tree["select"]}
    if recipe.distill.candidates > 1:  # the checks decide which examples get another candidate
        rewritten = chosen
    stages = [
        Stage("data", (), data, "data", _run_data),
        Stage("distill", ("data",), rewritten, "distill", _run_distill, _in_select),
        Stage("select", ("distill",), chosen, "select", _run_select, _in_select, cheap=True),
    ]
    if recipe.data is None:  # nothing to train on: the model is measured alone
        stages = []
    models = {SEED: reads("model seed", "style system")}
    for method in recipe.methods:
        source, read = ("select", chosen) if method == "sdft" else ("data", data)
        models[method] = reads("model train seed", "style system train", read)
        if method != "sdft":  # it has no part in it, so that runs over it share the others' stages
            own = {key: value for key, value in tree["train"].items() if key != "distilled_fraction"}
            models[method] = {**models[method], "train": own}
        name = f"train/{method}"
        stages.append(Stage(name, (source,), models[method], name, _trains(method)))
    everything = reads("model data distill select train methods evaluate seed", " ".join(tree["prompt"]))
    if recipe.evaluate.benchmarks:
        for model, before in models.items():
            inputs = reads("evaluate", "style system train infer max_prompt_tokens on_long", before)
            after = () if model == SEED else (f"train/{model}", f"eval/{SEED}")
            stages.append(Stage(f"eval/{model}", after, inputs, f"eval/{model}", _evaluates(model), _other_benchmarks))
        evals = tuple(f"eval/{model}" for model in models)
        stages.append(Stage("compare", evals, everything, "eval/comparisons.json", _run_compare, _any, cheap=True))
    if recipe.data and (recipe.analyze.nll or recipe.analyze.weights or recipe.analyze.similarity is not False):
        read_by_it = tuple(stage.name for stage in stages if stage.name not in ("distill", "compare"))
        fitted = models.get("sdft") or list(models.values())[-1]
        inputs = reads("evaluate analyze", "style system train", {**chosen, **fitted})
        stages.append(Stage("analyze", read_by_it, inputs, "analyze", _run_analyze, _still_measured, cheap=True))
    before_report = tuple(stage.name for stage in stages)
    stages.append(Stage("report", before_report, everything, "report", _run_report, _any, cheap=True))
    return stages


def _any(key: str, then: Any, now: Any) -> bool:
    return True


def _in_select(key: str, then: Any, now: Any) -> bool:
    """Other checks: rewrites stand, and those that now fail get their further candidates."""
    return key.startswith("select")


def _other_benchmarks(key: str, then: Any, now: Any) -> bool:
    """A benchmark added or taken away, or another judge: the replies that are there stand."""
    if not key.startswith("evaluate.benchmarks."):
        return False
    whole = then or now
    added_or_gone = (then is None or now is None) and isinstance(whole, Mapping) and "name" in whole
    return added_or_gone or any(f".{part}" in key for part in JUDGING)


def _still_measured(key: str, then: Any, now: Any) -> bool:
    """Other rows, texts, benchmarks and methods: what is measured is kept with what it was measured on."""
    if key.startswith("analyze."):
        return key != "analyze.embedder"
    new_method = key.startswith("train") and (then is None or now is None)
    return new_method or _in_select(key, then, now) or _other_benchmarks(key, then, now)


ONLY = {
    "distill": ("data", "distill"),
    "select": ("select",),
    "train": ("train",),
    "eval": ("eval", "compare"),
    "analyze": ("analyze",),
    "report": ("report",),
}
"""What each stage's command does, by the first part of the stages' names."""


def _wanted(run_dir: RunDir, stages: list[Stage], only: str | None) -> list[Stage]:
    """The stages to look at. Raises RunError where what they read is not there or is of other settings."""
    if only is None:
        return stages
    wanted = [stage for stage in stages if stage.name.split("/")[0] in ONLY[only]]
    if not wanted and not any(stage.name == "data" for stage in stages):
        raise RunError(f"{run_dir.path}: the recipe names no data, so there is nothing to {only}; write data: …")
    for stage in wanted if only != "report" else ():
        for before in stages:
            if before.name not in stage.after or before in wanted:
                continue
            if not run_dir.is_complete(before.name):
                raise RunError(
                    f"{run_dir.path}: stage '{before.name}', which '{stage.name}' reads from, is not finished, or its "
                    "files are gone; do it first, or let `sdft run` do all that is missing"
                )
            run_dir.check(before.name, before.inputs, stage.mild)
    return wanted


def _with_followers(stages: list[Stage], name: str) -> list[Stage]:
    """The stages called `name` or `name/…`, and all that read from them."""
    found = {stage.name for stage in stages if stage.name == name or stage.name.startswith(f"{name}/")}
    if not found:
        raise RunError(f"--redo {name}: there is no such stage; there are: {', '.join(s.name for s in stages)}")
    for stage in stages:
        if found & set(stage.after):
            found.add(stage.name)
    return [stage for stage in stages if stage.name in found]


# What they do. Each is imported when it is needed: a finished run needs none of them.


def _run_data(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
    from sdft.stages.distill import run_data

    return run_data(recipe, run_dir, console)


def _run_distill(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
    from sdft.stages.distill import run_distill

    return run_distill(recipe, run_dir, console)


def _run_select(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
    from sdft.stages.select import run_select

    return run_select(recipe, run_dir, console)


def _trains(method: Method) -> Callable[[Recipe, RunDir, Console], Sequence[str]]:
    def work(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
        from sdft.stages.train import run_train

        return run_train(recipe, run_dir, method, console)

    return work


def _evaluates(model: str) -> Callable[[Recipe, RunDir, Console], Sequence[str]]:
    def work(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
        from sdft.stages.evaluate import run_evaluate

        return run_evaluate(recipe, run_dir, model, console)

    return work


def _run_compare(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
    from sdft.stages.evaluate import run_compare

    return run_compare(recipe, run_dir, console)


def _run_analyze(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
    from sdft.stages.analyze import run_analyze

    return run_analyze(recipe, run_dir, console)


def _run_report(recipe: Recipe, run_dir: RunDir, console: Console) -> Sequence[str]:
    from sdft.stages.report import run_report

    run_report(run_dir, console)
    return ()
