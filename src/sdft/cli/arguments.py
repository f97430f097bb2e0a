"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _recipes(incomplete: str) -> list[str]:
    """For the shell: recipes by name, files and folders that begin so."""
    from sdft.recipe.files import recipe_files

    folder, _, begun = incomplete.rpartition("/")
    here = list(Path(folder or ("/" if incomplete.startswith("/") else ".")).glob(f"{begun}*"))
    paths = [f"{path}/" if path.is_dir() else str(path) for path in here if path.is_dir() or path.suffix == ".yaml"]
    return [*(name for name in recipe_files() if name.startswith(incomplete)), *sorted(paths)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe (a file, or a name from `sdft list recipes`), or a run's folder.",
        autocompletion=_recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the recipe's, such as train.epochs=1."),
]
