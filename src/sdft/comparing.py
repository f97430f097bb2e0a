"""Several runs in one page, from their files alone: `sdft report RUN RUN …`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sdft.errors import RecipeError, RunError
from sdft.pipeline import find, is_run
from sdft.report.compare import Comparison, compare, render_html, render_markdown
from sdft.rundir import atomic_write


def sort_arguments(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Runs, and settings such as `train.epochs=1`; a run of a sweep has such a name itself, and is there."""
    runs: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        (overrides if "=" in argument and not is_run(Path(argument)) else runs).append(argument)
    if not runs:
        raise RecipeError("name a run's folder or a recipe")
    return runs, overrides


def compare_runs(names: Sequence[str], overrides: Sequence[str], output: Path | None = None) -> Path:
    """Write the page that compares runs, and `.md` and `.json` beside it; returns the page.

    Raises RunError for runs that are not there, or one that is named twice.
    """
    if overrides:
        raise RecipeError(f"{' '.join(overrides)}: settings are for one run; several are compared as they are")
    folders = [Path(name) if is_run(Path(name)) else find(name)[1] for name in names]
    places = [folder.resolve() for folder in folders]
    for place, folder in enumerate(folders):
        if places[place] in places[:place]:
            raise RunError(f"{folder}: named twice")
    page = output or folders[0].parent / "comparison.html"
    if page.is_dir() or page.suffix in (".md", ".json"):
        raise RunError(f"{page}: the page needs a name of its own, such as comparison.html")
    made: Comparison = compare(folders)
    for path, text in (
        (page, render_html(made)),
        (page.with_suffix(".md"), render_markdown(made)),
        (page.with_suffix(".json"), made.model_dump_json(indent=2) + "\n"),
    ):
        with atomic_write(path) as file:
            file.write(text)
    return page
