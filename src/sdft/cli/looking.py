"""The commands that look and judge, and run nothing: check, plan, render, score, list."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sdft.cli.arguments import Overrides, RecipeArgument
from sdft.cli.start import filled
from sdft.errors import DataError


def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    data: Annotated[
        bool, typer.Option("--data", help="Also read the data and hold each reply of its own to the recipe's checks.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --data: exit with 2 where one of them does not pass.")
    ] = False,
) -> None:
    """Print a recipe with all defaults, or all its problems.

    Runs nothing, and loads no model.
    """
    from sdft.cautions import at_start
    from sdft.needs import forecasts
    from sdft.pipeline import check_all
    from sdft.recipe import dump_recipe

    resolved, folder = check_all(recipe, overrides or ())
    print(dump_recipe(resolved), end="")
    print(f"{recipe}: in order; `sdft run` would write to {folder}", file=sys.stderr)
    for forecast in forecasts(resolved):
        print(f"note: {forecast}", file=sys.stderr)
    for caution in at_start(resolved):
        print(f"warning: {caution}", file=sys.stderr)
    if data:
        from sdft.errors import counted
        from sdft.inspection import failing_golds, shared_rows

        examples, failing, skipped = failing_golds(resolved)
        for line in [*failing, *(f"skipped: {row}" for row in skipped)]:
            print(line, file=sys.stderr)
        left_out = f" ({counted(len(skipped), 'bad row')} skipped)" if skipped else ""
        refused = f"of their own replies {len(failing)} do not pass the checks"
        print(f"data: {counted(examples, 'example')}{left_out}; {refused}", file=sys.stderr)
        for caution in shared_rows(resolved):
            print(f"warning: {caution}", file=sys.stderr)
        if failing and strict:
            raise typer.Exit(2)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    num_processes: Annotated[int, typer.Option(min=1, help="As for `sdft train`: how many processes will train.")] = 1,
) -> None:
    """Say what a recipe will take, before it is run.

    Rows, tokens, time, memory, disk and cost. Loads the model briefly.
    """
    from sdft.pipeline import check_all
    from sdft.planning import plan_recipe

    resolved, _ = check_all(recipe, overrides or ())
    for line in plan_recipe(resolved, num_processes):
        kind, colon, text = line.partition(": ")
        lead, columns = kind + colon, shutil.get_terminal_size().columns
        print(filled(lead, text, max(columns, len(lead) + 40)) if sys.stdout.isatty() else line, flush=True)


def render(
    dataset: Annotated[str, typer.Option(help="A dataset as in a recipe's data.dataset.")],
    template: Annotated[str, typer.Option(help="A name from `sdft list templates`, or a jinja string.")],
    rows: Annotated[str | None, typer.Option(help="Which rows, such as 0,5-9; default: all.")] = None,
    answer: Annotated[bool, typer.Option("--answer", help="Add the reply, with what ends it.")] = False,
    model: Annotated[str | None, typer.Option(help="Take special tokens and chat template from this model.")] = None,
) -> None:
    """Print prompts as the model gets them.

    JSON lines {row, prompt, answer}.
    """
    from sdft.inspection import parse_rows, rendered

    skipped: list[str] = []
    for line in rendered(dataset, template, parse_rows(rows), answer, model, skipped):
        print(line)
    for why in skipped:
        print(f"skipped: {why}", file=sys.stderr)


def score(
    file: Annotated[Path, typer.Argument(help="JSON lines with `label` and `predict`.")],
    check: Annotated[str | None, typer.Option(help="A name from `sdft list checks`.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="In place of a check: BENCHMARK or BENCHMARK.METRIC, such as openfunction.")
    ] = None,
) -> None:
    """Judge a file of replies by a check or a benchmark.

    The same rows with `verdict` on stdout, the accuracy with its 95 % interval on stderr.
    """
    from sdft.inspection import Rescoring, judge_of

    rescoring = Rescoring(*judge_of(check, metric))
    for line in rescoring.lines(file):
        print(line)
    for bad in rescoring.bad:
        print(f"left out: {bad}", file=sys.stderr)
    print(rescoring.result(), file=sys.stderr)
    if rescoring.bad:
        raise DataError(f"{file}: {len(rescoring.bad)} lines are not rows with `label` and `predict`, see above")


Kind = Literal["datasets", "templates", "checks", "engines", "benchmarks", "methods", "recipes"]


def list_kind(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List what recipes can name."""
    from sdft.inspection import listed

    entries = listed(kind)
    width = max((len(name) for name, _ in entries), default=0)
    columns = max(shutil.get_terminal_size().columns, width + 40) if sys.stdout.isatty() else None
    for name, text in entries:
        lead = f"{name:<{width}}  "
        print(filled(lead, text, columns) if columns else (lead + text).rstrip())
