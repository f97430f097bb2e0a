"""The stages as functions on plain objects, for notebooks: names stand for settings, lists come back.

Nothing is written to disk but by `train`. For a run that can be interrupted and audited, use `sdft.run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sdft.benchmarks import AnyBenchmark, HarnessBenchmark
from sdft.benchmarks.dataset import written_out
from sdft.checks import AnyCheck, Check
from sdft.console import Console
from sdft.engines import AnyEngine, Sampling
from sdft.errors import BenchmarkError, DataError, RecipeError
from sdft.models import ModelConfig, load_tokenizer
from sdft.prompts import PromptConfig
from sdft.recipe import DistillConfig, Recipe, TrainConfig
from sdft.recipe.problems import explain
from sdft.records import Choice, Example, Prediction, Rewrite, named
from sdft.rendering import open_prompter
from sdft.rundir import RunDir

if TYPE_CHECKING:
    from sdft.stages.train import TrainResult

T = TypeVar("T")
Setting = str | Mapping[str, Any]
"""A name, or a mapping as it would stand in a recipe."""


def distill(
    examples: Iterable[Example],
    model: str | ModelConfig,
    *,
    prompt: PromptConfig | None = None,
    sampling: Sampling | None = None,
    candidates: int = 1,
    checks: Sequence[Setting | Check] = (),
    engine: Setting | AnyEngine = "transformers",
    seed: int = 0,
) -> list[Rewrite]:
    """Let a model write its own reply to each example, shown the dataset's. Returns them as they finished.

    The prompt is the recipe's default where none is given: the model's chat template, `using` the reference.
    Decoding is sampled as in a recipe. More `candidates` are tried where earlier ones fail `checks`.
    Raises ModelError, PromptError and EngineError.
    """
    from sdft.stages import distill as stage

    model = _model(model)
    settings = _engine(engine)
    prompter = open_prompter(prompt or PromptConfig(), settings, model)
    with closing(settings.open(model)) as opened:
        return list(
            stage.distill(
                examples,
                opened,
                prompter,
                sampling or DistillConfig().sampling,
                candidates=candidates,
                checks=_checks(checks),
                seed=seed,
            )
        )


def select(
    examples: Iterable[Example],
    rewrites: Iterable[Rewrite],
    checks: Sequence[Setting | Check] = ("leak",),
    *,
    keep_truncated: bool = False,
) -> list[Choice]:
    """For each example, in order, the first rewrite that passes every check, or the original, with the verdicts."""
    from sdft.stages import select as stage

    return list(stage.select(examples, rewrites, _checks(checks), keep_truncated))


def train(
    examples: Iterable[Example],
    model: str | ModelConfig,
    output_dir: str | Path,
    *,
    choices: Iterable[Choice] | None = None,
    config: TrainConfig | None = None,
    prompt: PromptConfig | None = None,
    seed: int = 0,
) -> TrainResult:
    """Fine-tune a model on examples: on their own replies, or on what `choices` gives instead (SDFT).

    The adapter (or model, with `config.lora` None) stands in `output_dir` when it is whole; interrupted and called
    again with the same arguments, training goes on. Raises DataError, ModelError, PromptError and RecipeError.
    """
    from sdft.prompts import Renderer
    from sdft.stages.train import TrainingPair, train_model
    from sdft.training.rows import replies_to_learn

    model = _model(model)
    renderer = Renderer(prompt or PromptConfig(), load_tokenizer(model))
    config = config or TrainConfig()
    chosen = None if choices is None else replies_to_learn(choices, config.distilled_fraction, seed)
    pairs = []
    for example in examples:
        shown = renderer.train(example)
        reply = example.reference if chosen is None else chosen.get(example.id)
        if reply is None:
            raise DataError(f"example {example.id}: there is no choice for it; select from the same examples")
        pairs.append(TrainingPair(example.id, shown.text, reply, shown.end))
    return train_model(
        pairs,
        model,
        config,
        Path(output_dir),
        seed=seed,
        console=Console(),
        method="sft" if chosen is None else "sdft",
    )


def evaluate(
    benchmark: Setting | AnyBenchmark,
    model: str | ModelConfig,
    *,
    prompt: PromptConfig | None = None,
    sampling: Sampling | None = None,
    engine: Setting | AnyEngine = "transformers",
    seed: int = 0,
) -> list[Prediction]:
    """A model's judged replies to a benchmark, in the dataset's order. Greedy where nothing else is said.

    `knowledge` asks the model itself, without engine, prompt and sampling.
    `drift` compares two models and has no meaning for one alone: its replies are measured for length only. A
    `judge_model` is not asked: judgements are kept in run folders.
    Raises BenchmarkError, DataError, ModelError, PromptError and EngineError.
    """
    from sdft.stages import evaluate as stage

    model = _model(model)
    settings = _engine(engine)
    bench = _parse("benchmark", TypeAdapter(AnyBenchmark), benchmark)
    if isinstance(bench, HarnessBenchmark):
        with TemporaryDirectory() as folder:
            return bench.measure(model, Path(folder, Path(model.name).name, bench.called), Console())
    decoding = sampling or bench.sampling or Sampling()
    for problem in bench.conflicts(decoding):
        raise BenchmarkError(f"{bench.called}: {problem}")
    prompter = open_prompter(prompt or PromptConfig(), settings, model)
    with closing(settings.open(model)) as opened:
        found = {
            prediction.id: prediction for prediction in stage.evaluate(bench, opened, prompter, decoding, seed=seed)
        }
    return [found[example.id] for example in bench.examples()]


def analyze(recipe: Recipe | Setting | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Measure what `sdft analyze` does, in a run folder whose models are trained and evaluated; returns the results.

    `nll`, `shift` and `weights`, as the JSON files in the run's `analyze/` hold them; one that was not measured is
    missing. `recipe` may be the run folder. Raises RecipeError and RunError.
    """
    from sdft.pipeline import run
    from sdft.rundir import read_json

    folder = run(recipe, overrides, Console(quiet=True), only="analyze").path / "analyze"
    names = ("nll", "shift", "weights")
    return {name: read_json(folder / f"{name}.json") for name in names if (folder / f"{name}.json").exists()}


def build_report(run_folder: str | Path) -> Path:
    """Write a run folder's report anew from its files; returns the HTML file. Raises RunError."""
    from sdft.stages.report import run_report

    return run_report(RunDir(run_folder), Console(quiet=True))


def _model(model: str | ModelConfig) -> ModelConfig:
    return model if isinstance(model, ModelConfig) else ModelConfig(name=model)


def _engine(engine: Setting | AnyEngine) -> AnyEngine:
    return _parse("engine", TypeAdapter(AnyEngine), engine)


def _checks(checks: Sequence[Setting | Check]) -> tuple[AnyCheck, ...]:
    adapter = TypeAdapter[AnyCheck](AnyCheck)
    return tuple(_parse("checks", adapter, check) for check in checks)


def _parse(what: str, adapter: TypeAdapter[T], value: object) -> T:
    try:
        return adapter.validate_python(written_out(named(value)))
    except ValidationError as error:
        told = explain(error.errors()[0])
        raise RecipeError(what + (told if told.startswith(":") else f".{told}")) from None
