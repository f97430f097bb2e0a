"""What a recipe needs and does not find here, each with how to get it: before hours of work, not after them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdft.benchmarks import AnyBenchmark, HarnessBenchmark
from sdft.benchmarks.drift import Drift
from sdft.data import iter_examples, unfetched
from sdft.data.config import DataConfig
from sdft.data.files import is_data_file
from sdft.engines import AnyEngine, AutoSettings, OpenAISettings, RaySettings, VLLMSettings
from sdft.errors import DataError, ModelError, SdftError, did_you_mean
from sdft.models import ModelConfig, resolve
from sdft.models import lacking as model_lacking
from sdft.recipe import AnalyzeConfig, Recipe
from sdft.rendering import needs_tokenizer

TRACKERS = {
    "mlflow": "mlflow-skinny", "wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio",
    "comet_ml": "comet_ml", "swanlab": "swanlab", "clearml": "clearml", "codecarbon": "codecarbon",
    "neptune": "neptune", "dvclive": "dvclive", "dagshub": None, "flyte": None, "azure_ml": None, "kubeflow": None,
}  # fmt: skip
"""What transformers can tell of a training, and the package to install for it; None: not by the name alone."""


LOOKED_INTO = 2**26
"""Bytes: data files up to here are looked into before a run, for some forms are read as a whole."""


def lacking(recipe: Recipe) -> list[str]:
    """Data and packages that the recipe needs and that are not here, each with how to get it."""
    return [
        *(_lacking_model(recipe.model) if _with_model(recipe) else []),
        *_lacking_data(recipe.data),
        *_lacking_engines(recipe, SECTIONS),
        *_lacking_benchmarks(recipe.evaluate.benchmarks),
        *_lacking_similarity(recipe.analyze),
        *_lacking_trackers(recipe.train.report_to if recipe.methods else ()),
    ]


def forecasts(recipe: Recipe) -> list[str]:
    """What the recipe will fetch, and ask of judge models and the hub: a line for each. Reads a judge's data."""
    models = 1 + len(recipe.methods)
    absent = unfetched(recipe.data) if recipe.data else None
    lines = [f"data: {absent}. `sdft run` tries to fetch it"] if absent else []
    for benchmark in recipe.evaluate.benchmarks:
        absent = benchmark.unfetched()
        told = f"{absent}. `sdft run` tries to fetch it" if absent else None
        told = told or benchmark.forecast(models, recipe.evaluate.sampling)
        lines += [f"benchmark '{benchmark.called}': {told}"] if told else []
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


SECTIONS = {"distill": "distill", "eval": "evaluate", "analyze": "evaluate"}
"""The kind of stage → the section of the recipe whose engine it opens: likelihoods are measured with evaluate's."""


def engines(recipe: Recipe) -> dict[str, AnyEngine]:
    """The kind of stage → the engine that it will open."""
    asked = any(not isinstance(benchmark, HarnessBenchmark) for benchmark in recipe.evaluate.benchmarks)
    found: dict[str, AnyEngine] = {"distill": recipe.distill.engine} if recipe.data else {}
    found |= {"eval": recipe.evaluate.engine} if asked else {}
    return found | ({"analyze": recipe.evaluate.engine} if recipe.data and recipe.analyze.nll else {})


def _with_model(recipe: Recipe) -> set[str]:
    """The kinds of stages that fail where the model, or its tokenizer, cannot be had."""
    kinds = {kind for kind, engine in engines(recipe).items() if needs_tokenizer(recipe.prompt, engine)}
    if isinstance(recipe.evaluate.engine, OpenAISettings):
        kinds -= {"analyze"}  # it leaves a note instead
    return kinds | ({"train"} if recipe.methods else set()) | ({"eval"} if measures_model(recipe) else set())


def measures_model(recipe: Recipe) -> bool:
    """Whether a benchmark loads the model by itself, whatever the engine."""
    return any(isinstance(benchmark, HarnessBenchmark) for benchmark in recipe.evaluate.benchmarks)


def _lacking_engines(recipe: Recipe, kinds: Collection[str]) -> list[str]:
    """What it takes to ask a server or to run vLLM or Ray, for stages of these kinds."""
    found = {SECTIONS[kind]: engine for kind, engine in engines(recipe).items() if kind in kinds}
    return [
        f"{section}.engine: {what}"
        for section, engine in found.items()
        if isinstance(engine, OpenAISettings | RaySettings | VLLMSettings)
        for what in engine.missing()
    ]


def _lacking_model(model: ModelConfig | None) -> list[str]:
    found = model_lacking(model) if model else None
    return [f"model {found}"] if found else []


def _lacking_data(data: DataConfig | None) -> list[str]:
    from sdft.data import missing

    found = (missing(data) or _unlike_its_format(data)) if data else None
    return [f"data: {found}"] if found else []


def _unlike_its_format(data: DataConfig) -> str | None:
    """Why the rows of a local file cannot be examples, as far as the first ones show; None where they can."""
    path = Path(data.dataset)
    if not (is_data_file(data.dataset) and path.is_file() and path.stat().st_size < LOOKED_INTO):
        return None
    try:
        next(iter(iter_examples(data, [])), None)
    except DataError as error:
        return str(error)
    return None


def _lacking_benchmarks(benchmarks: Iterable[AnyBenchmark]) -> list[str]:
    return [f"benchmark '{b.called}': {what}" for b in benchmarks for what in b.missing()]


def _lacking_trackers(names: Iterable[str]) -> Iterator[str]:
    """Trackers that transformers does not know, or whose package is not here."""
    for name in names:
        if name not in (*TRACKERS, "all"):
            yield f"train.report_to: no tracker '{name}'{did_you_mean(name, TRACKERS)}"
        elif (package := TRACKERS.get(name)) and find_spec(name) is None:
            yield f"train.report_to: the package {name} is not installed: pip install {package}"


def _unobtainable_data(recipe: Recipe) -> list[str]:
    """As `_lacking_data`, once what can be fetched has been."""
    from sdft.data import provide

    try:
        if recipe.data:
            provide(recipe.data)
    except SdftError as error:
        return [f"data: {error}"]
    return _lacking_data(recipe.data)


def _unobtainable_model(recipe: Recipe, kinds: Collection[str]) -> list[str]:
    """Fetches it before a server is paid for rewrites that nothing could be done with."""
    if "distill" not in kinds or not isinstance(recipe.distill.engine, OpenAISettings):
        return []  # what loads it comes first, or has nothing paid before it
    served = all(isinstance(engine, OpenAISettings) for engine in engines(recipe).values())
    try:
        resolve(recipe.model, weights=bool(recipe.methods) or measures_model(recipe) or not served)
    except ModelError as error:
        return [f"model {error}"]
    return []


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
            found.append(f"benchmark '{benchmark.called}': {error}")
    return found


def lacking_for(recipe: Recipe, kinds: Collection[str]) -> list[str]:
    """What stages of these kinds (`data`, `train`, `eval` …) need and do not find. What can be fetched is, first."""
    problems = _unobtainable_data(recipe) if "data" in kinds else []
    if not _with_model(recipe).isdisjoint(kinds):
        problems += _lacking_model(recipe.model) or _unobtainable_model(recipe, kinds)
    problems += _lacking_trackers(recipe.train.report_to) if "train" in kinds else []
    problems += _lacking_engines(recipe, kinds)
    if "eval" in kinds:
        problems += _unreadable_benchmarks(recipe) or _lacking_benchmarks(recipe.evaluate.benchmarks)
    if "analyze" in kinds:
        problems += _lacking_similarity(recipe.analyze) or _lacking_embedder(recipe)
    return problems


def lacking_of(sound: Mapping[str, Any]) -> list[str]:
    """As `lacking`, for those sections of a faulty recipe that are in order by themselves."""
    engines = {sound[key].engine.name for key in ("distill", "evaluate") if key in sound}
    without = bool(engines) and engines <= {"scripted", "openai"}
    found = [] if without else _lacking_model(sound.get("model"))
    found += _lacking_data(sound.get("data"))
    found += _lacking_benchmarks(sound["evaluate"].benchmarks) if "evaluate" in sound else []
    return found + _lacking_similarity(sound.get("analyze"))
