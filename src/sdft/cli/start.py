"""The commands for the first minutes: init, doctor, recipe-schema."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

SHOWN_CHARS = 1500


def init(
    file: Annotated[
        str | None, typer.Argument(help="A dataset: .json, .jsonl, .csv or .parquet. Default: the one that is here.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="The chat model to teach: a hub name, a folder or a .gguf file.")
    ] = "HuggingFaceTB/SmolLM2-135M-Instruct",
    columns: Annotated[
        str | None,
        typer.Option(metavar="PART=COLUMN,…", help="Where prompt and reply stand: prompt=question,response=solution."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe to write. Default: the dataset's name with .yaml.")
    ] = None,
) -> None:
    """Write a commented recipe for a dataset.

    Looks at its form and its replies, and prints two prompts as the model will get them."""
    from sdft import starter
    from sdft.errors import RecipeError, counted
    from sdft.models import ModelConfig, lacking
    from sdft.visible import visible

    dataset = file or starter.only_file(Path())
    problem = lacking(ModelConfig(name=model))
    if problem:
        raise RecipeError(f"--model {problem}")
    seen = starter.look(dataset, starter.parse_columns(columns) if columns else None)
    path = out or Path(f"{Path(dataset).name.partition('.')[0]}.yaml")
    recipe = starter.write(seen, model, path)
    for heading, text in starter.prompts(recipe, seen.examples[0]):
        print(f"--- {heading}\n{visible(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + ' …')}\n")
    for row in seen.bad[:5]:
        print(f"skipped: {visible(str(row))}", file=sys.stderr)
    left_out = f" ({counted(len(seen.bad), 'bad row')} left out)" if seen.bad else ""
    print(
        f"{dataset}: {counted(len(seen.examples), 'row')} looked at{left_out}; {seen.layout}; replies: {seen.kind.name}"
    )
    if seen.left_out:
        unused = visible(", ".join(seen.left_out))
        print(f"not used: {unused}; where prompts need them: --columns prompt=…,query=COLUMN,response=…")
    if not seen.held_out:
        few = (
            f"fewer than {starter.ENOUGH} rows"
            if len(seen.examples) < starter.ENOUGH
            else "no check tells a right reply"
        )
        print(f"no rows are kept for a test ({few}): add a benchmark of your task, or no gain can be told")
    print(f"{path}: written; next: sdft check {path} --data, then sdft run {path}")


def doctor() -> None:
    """What works here, what is missing, what mends it.

    Looks at Python, torch, device, disk, datasets, extras, hub and sandbox.
    Exits with 2 where nothing can run.
    """
    from sdft.doctor import examine

    width = max(min(shutil.get_terminal_size().columns, 120), 40)
    broken = 0
    for finding in examine():
        broken += finding.state == "broken"
        print(filled(f"{finding.state:<8} ", finding.text, width))
        if finding.mend:
            print(filled(" " * 9 + "→ ", finding.mend, width))
    if broken:
        raise typer.Exit(2)


def filled(lead: str, text: str, width: int) -> str:
    """A text with something before it, in lines of at most `width`."""
    indent = " " * len(lead)
    return textwrap.fill(
        text, width, initial_indent=lead, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    With it, an editor completes and explains keys as you type: put `# yaml-language-server: $schema=FILE` on top.
    """
    from sdft.recipe_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
