"""The docs hold to what they speak of: commands, recipes, names, the licence's text."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml
from click import Command
from typer.main import get_command

from sdft.benchmarks import AnyBenchmark
from sdft.checks import AnyCheck
from sdft.cli import app
from sdft.engines import AnyEngine
from sdft.inspection import members
from sdft.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS: dict[str, Command] = get_command(app).commands  # type: ignore[attr-defined]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/site/{name}.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def fences(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_of_commands_is_what_help_prints() -> None:
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert page == module("commands").page(), "run `python docs/site/commands.py`"


def test_the_page_of_keys_is_what_the_schema_says() -> None:
    page = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
    assert page == module("keys").page(), "run `python docs/site/keys.py`"
    assert all(f"\n### {name}\n" in page for name in [*members(AnyCheck), *members(AnyBenchmark), *members(AnyEngine)])


def test_the_pages_of_the_reports_data_are_what_the_classes_say() -> None:
    for name, text in module("schemas").pages().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run `python docs/site/schemas.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_have_the_options_that_are_shown(page: Path) -> None:
    lines = [line for text in fences(page, "bash") for line in text.splitlines()]
    for line in [*lines, *re.findall(r"`(sdft [^`\n]+)`", page.read_text(encoding="utf-8"))]:
        if not line.startswith("sdft ") or "COMMAND" in line:
            continue
        words = shlex.split(line, comments=True)[1:]
        if words[0].startswith("-"):
            continue
        for name in [part.strip("`,") for part in words[:1]]:
            assert name in COMMANDS, f"{line}: no command {name}"
            options = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
            shown = {re.split(r"[=\]]", word.strip("[]"))[0] for word in words if word.strip("[").startswith("--")}
            assert shown <= options, f"{line}: {shown - options}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_whole_recipes_on_a_page_are_in_order(page: Path) -> None:
    for text in fences(page, "yaml"):
        if "--8<--" not in text and {"model", "data"} <= (tree := yaml.safe_load(text)).keys():
            assert load_recipe(tree).data


@pytest.mark.parametrize(
    ("package", "union", "page"),
    [
        ("benchmarks", "AnyBenchmark", "benchmarks.md"),
        ("checks", "AnyCheck", "recipes.md"),
        ("engines", "AnyEngine", "engines.md"),
    ],
)
def test_everything_that_a_recipe_can_name_is_described(package: str, union: str, page: str) -> None:
    classes: tuple[Any, ...] = get_args(get_args(getattr(importlib.import_module(f"sdft.{package}"), union))[0])
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for member in classes:
        name = member.model_fields["name"].default
        assert re.search(rf"^### {name}$|^\| `{name}` \|", text, re.MULTILINE), f"docs/{page} lacks {name}"


def test_every_page_stands_in_the_navigation() -> None:
    shown = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "results.md" or f": {name}\n" in shown, f"mkdocs.yml has no {name}"


def test_licence_citation_and_changelog_agree_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert len(citation["preferred-citation"]["authors"]) == 7
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # apache.org's own file


def test_what_the_site_needs_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(lines, key=str.lower)
    assert {"mkdocs", "mkdocs-material", "mkdocstrings", "nbclient"} <= {line.partition("==")[0] for line in lines}
