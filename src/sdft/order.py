"""Which stages a recipe has, what each depends on, and what a change of the recipe leaves of its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdft.console import Console
from sdft.errors import RunError, did_you_mean
from sdft.recipe import Method, Recipe
from sdft.rundir import RunDir

SEED = "seed"

SPEED_ONLY = {
    "max_batch_size", "prefill_tokens", "replicas", "latency", "die_after", "batch_size", "base_url", "api_key_env",
    "max_concurrency", "timeout", "max_retries", "patience", "prompt_price", "completion_price",
}  # fmt: skip
"""Settings of engines and benchmarks that change how fast a run goes, not what comes of it; it goes on with others."""

JUDGING = ("judge_model", "orders", "difficulty")
"""Settings of benchmarks that bear on how finished replies are judged."""


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


def wanted_stages(run_dir: RunDir, stages: list[Stage], only: str | None) -> list[Stage]:
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


def with_followers(stages: list[Stage], name: str) -> list[Stage]:
    """The stages called `name` or `name/…`, and all that read from them."""
    found = {stage.name for stage in stages if stage.name == name or stage.name.startswith(f"{name}/")}
    if not found:
        kinds = dict.fromkeys(part for stage in stages for part in (stage.name.split("/")[0], stage.name))
        raise RunError(f"--redo {name}: there is no such stage{did_you_mean(name, kinds)}")
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
