"""The command line. Thin: it parses, calls, prints. Only here are errors caught."""

from __future__ import annotations

import errno
import io
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdft.cli import looking, start, using
from sdft.cli.arguments import Overrides, RecipeArgument
from sdft.errors import RecipeError, SdftError

if TYPE_CHECKING:
    from sdft.recipe import Recipe


def shown(*examples: str) -> str:
    """Commands as they stand below a command's help."""
    return "\n".join(["\b", "Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)])


app = typer.Typer(
    name="sdft",
    help="Fine-tune language models without forgetting: from a dataset and a seed model to adapters and a report.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=shown(
        "sdft init mine.jsonl        # a recipe for a dataset of yours",
        "sdft run mine.yaml          # from dataset to report; the same again goes on",
        "sdft chat runs/mine         # the result, beside the model it was made from",
        "sdft doctor                 # what works here, and what is missing",
    ),
)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and results.")]
Redo = Annotated[
    str | None, typer.Option(metavar="STAGE", help="Delete this stage's files, and all made from them, first.")
]


def main() -> None:
    """Run the command line; the user's errors are one line (or the list of them) and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # whatever the locale, what datasets hold can be printed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # before anything was begun
        raise SystemExit(130) from None
    except SdftError as error:
        fail(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fail(f"{_place(error)}the disk is full; what is done is kept: make room and give the same command again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            fail(f"{_place(error)}{error.strerror}; make it accessible and give the same command again")
        raise


def fail(message: str) -> None:
    """Say what is wrong and exit with 2."""
    from sdft.training.ranks import rank
    from sdft.visible import visible

    where = f" (process {rank()})" if rank() else ""
    print(f"error{where}: {visible(message)}", file=sys.stderr)
    raise SystemExit(2)


def _place(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("sdft"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


# Running


@app.command(
    epilog=shown(
        "sdft run mine.yaml",
        "sdft run mine.yaml name=longer train.epochs=4",
        "sdft run chat/gsm8k model=Qwen/Qwen2.5-1.5B-Instruct data.limit=500",
        "sdft run runs/mine --redo train",
    )
)
def run(recipe: RecipeArgument, overrides: Overrides = None, redo: Redo = None, quiet: Quiet = False) -> None:
    """Run a recipe from dataset to report, or go on with it. Prints the scoreboard."""
    _run(recipe, overrides, quiet, redo=redo)


@app.command(epilog=shown("sdft distill mine.yaml"))
def distill(recipe: RecipeArgument, overrides: Overrides = None, redo: Redo = None, quiet: Quiet = False) -> None:
    """Read the dataset; have the seed model rewrite its replies."""
    _run(recipe, overrides, quiet, redo=redo, only="distill")


@app.command(epilog=shown("sdft select runs/mine select.checks=[leak,number]"))
def select(recipe: RecipeArgument, overrides: Overrides = None, redo: Redo = None, quiet: Quiet = False) -> None:
    """Check the rewrites and choose what to train on. Generates nothing."""
    _run(recipe, overrides, quiet, redo=redo, only="select")


@app.command(epilog=shown("sdft train runs/mine methods=[sdft]", "sdft train mine.yaml --num-processes 8"))
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    num_processes: Annotated[
        int, typer.Option(min=1, help="Train in so many processes on this machine, one a GPU, each on its own rows.")
    ] = 1,
    redo: Redo = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune with each of the recipe's methods. Also under torchrun or accelerate: see docs/cluster.md."""
    from sdft.training.ranks import end_with_launcher, launch

    if num_processes == 1:
        end_with_launcher()
        _run(recipe, overrides, quiet, redo=redo, only="train")
        return
    options = [*(["--redo", redo] if redo else []), *(["--quiet"] if quiet else [])]
    with _resumable():
        code = launch(["train", recipe, *(overrides or ()), *options], num_processes)
    raise SystemExit(code)


@app.command(
    name="eval",
    epilog=shown("sdft eval mine.yaml", "sdft eval Qwen/Qwen2.5-1.5B-Instruct --benchmarks gsm8k,drift --limit 100"),
)
def evaluate(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE|MODEL", help="A recipe, a run's folder, or a model: hub name, folder, GGUF."),
    ],
    overrides: Overrides = None,
    benchmarks: Annotated[
        str | None, typer.Option(help="For a model: which benchmarks, such as gsm8k,advbench.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="For a model: a PEFT adapter to put on top.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="For a model: the first rows of each benchmark.")] = None,
    redo: Redo = None,
    quiet: Quiet = False,
) -> None:
    """Measure seed and tuned models on benchmarks, or any model.

    Prints the scoreboard.
    """
    from sdft.untrained import eval_recipe, is_recipe

    if not is_recipe(recipe):
        names = [name.strip() for name in (benchmarks or "").split(",") if name.strip()]
        made = eval_recipe(recipe, benchmarks=names, adapter=adapter, limit=limit, overrides=overrides or ())
        _run(made, None, quiet, redo=redo)
        return
    for option, value in (("--benchmarks", benchmarks), ("--adapter", adapter), ("--limit", limit)):
        if value is not None:
            raise RecipeError(
                f"{option} is for a model, and {recipe} is a recipe or a run; set evaluate.benchmarks=… or "
                "model.adapter=… instead"
            )
    _run(recipe, overrides, quiet, redo=redo, only="eval")


@app.command(epilog=shown("sdft analyze runs/mine analyze.rows=null"))
def analyze(recipe: RecipeArgument, overrides: Overrides = None, redo: Redo = None, quiet: Quiet = False) -> None:
    """Measure data against model, and how far tuning moved it.

    The likelihood of originals and rewrites, how like replies are to the seed's, the size of the weight change.
    """
    _run(recipe, overrides, quiet, redo=redo, only="analyze")


@app.command(epilog=shown("sdft report runs/mine --open", "sdft report runs/a runs/b"))
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="A run's folder or recipe; several are compared in one page. Or KEY=VALUE for one."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For several runs: the page; default: comparison.html beside the first."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's report anew, or a page that compares several."""
    from sdft.comparing import compare_runs, sort_arguments

    names, overrides = sort_arguments(runs)
    if len(names) > 1:
        page = compare_runs(names, overrides, output)
        print(f"report: {page}")
    elif output is not None:
        raise RecipeError("--output is for several runs; one run's report goes into its folder")
    else:
        page = _run(names[0], overrides, quiet, only="report")
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command(name="gate", epilog=shown("sdft gate runs/mine --max-loss ifeval=2 --min-gain gsm8k=10"))
def hold(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, with its report.")],
    max_loss: Annotated[
        list[str] | None,
        typer.Option(metavar="BENCHMARK=POINTS", help="Fail where more was lost against the seed, such as ifeval=2."),
    ] = None,
    min_gain: Annotated[
        list[str] | None,
        typer.Option(metavar="BENCHMARK=POINTS", help="Fail where less was gained, such as bfcl_simple=10."),
    ] = None,
    method: Annotated[str, typer.Option(help="Which tuned model.")] = "sdft",
) -> None:
    """Hold a run to limits, for continuous integration.

    Exits with 0 where all are met, 1 where one is not, 2 where they cannot be told. Limits are in the
    unit that the report shows: points of a percentage, nats for the drift.
    """
    from sdft.gate import gate, parse_conditions, read_report

    outcomes = gate(read_report(folder), parse_conditions(max_loss or (), min_gain or ()), method)
    for outcome in outcomes:
        print(outcome.text)
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)


@app.command(epilog=shown("sdft sweep mine.yaml train.distilled_fraction=0,0.5,1 seed=0,1,2"))
def sweep(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE[,VALUE]...",
            help="Keys to sweep over with their values, such as train.distilled_fraction=0,0.5,1 seed=0,1,2; "
            "a key with one value is set for all runs.",
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Run a recipe at every combination of some settings.

    The same command goes on where it stopped. Prints the table over them.
    """
    from sdft.console import Console
    from sdft.grid import parse_settings, show_table, sweep_written

    console = Console(quiet)
    grid, overrides = parse_settings(settings)
    with _resumable():
        result = sweep_written(recipe, grid, overrides, console)
    show_table(result.table, console)
    print(f"sweep: {result.report}")


def _run(
    recipe: str | Recipe,
    overrides: list[str] | None,
    quiet: bool,
    *,
    redo: str | None = None,
    only: str | None = None,
) -> Path:
    with _resumable():
        from sdft import pipeline
        from sdft.console import Console
        from sdft.scoreboard import show_scoreboard
        from sdft.training.ranks import rank

        console = Console(quiet)
        result = pipeline.run(recipe, overrides or (), console, redo=redo, only=only)
    if rank() > 0:
        return result.report
    if not result.done:
        where = f"; report: {result.report}" if only is None else ""
        print(f"{result.path}: nothing to do, all of it is finished{where} (--redo STAGE makes a stage anew)")
        return result.report
    if only in (None, "eval"):
        show_scoreboard(result, console)
    if only in (None, "report"):
        print(f"report: {result.report}")
    return result.report


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it before it takes a machine away: ends a run as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _TerminatedError


@contextmanager
def _resumable() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as error:
        from sdft.training.ranks import world_size

        if world_size() == 1:  # of several, the one that started them says so
            again = shlex.join(["sdft", *sys.argv[1:]])
            print(f"\ninterrupted; what is done is kept, and `{again}` goes on from here", file=sys.stderr)
        raise typer.Exit(143 if isinstance(error, _TerminatedError) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


# Looking, first minutes, and what is done with a result

for command, examples in (
    (
        looking.check,
        ("sdft check mine.yaml --data", "sdft check chat/gsm8k model=./my-model > whole.yaml"),
    ),
    (looking.plan, ("sdft plan mine.yaml", "sdft plan mine.yaml --num-processes 8")),
    (
        looking.render,
        (
            "sdft render --dataset gsm8k_train --template gsm8k --rows 0-2",
            "sdft render --dataset mine.jsonl --template using --model ./my-model",
        ),
    ),
    (
        looking.score,
        (
            "sdft score --check number replies.jsonl > judged.jsonl",
            "sdft score --metric openfunction.positional replies.jsonl",
        ),
    ),
    (looking.list_kind, ("sdft list recipes", "sdft list checks")),
    (start.init, ("sdft init mine.jsonl --model Qwen/Qwen2.5-1.5B-Instruct",)),
    (start.doctor, ("sdft doctor",)),
    (start.recipe_schema, ("sdft recipe-schema > recipe.schema.json",)),
    (using.export, ("sdft export runs/mine --merge", "sdft export runs/mine --dataset --push me/mine-distilled")),
    (using.serve, ("sdft serve mine.yaml", "sdft serve runs/mine --port 8000 -- --max-model-len 4096")),
    (using.chat, ("sdft chat runs/mine", "echo 'How much is 7 - 9?' | sdft chat runs/mine --method sft")),
):
    name = command.__name__.replace("_", "-").removesuffix("-kind")
    app.command(name=name, epilog=shown(*examples))(command)
