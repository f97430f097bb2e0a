"""The files that the docs show for adding a dataset, a check, an engine and a benchmark: added to a copy, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_models import save_tiny_model

ROOT = Path(__file__).parents[1]
ADDING = ROOT / "examples/adding"
CLASSES = {"check": "JsonKeys", "engine": "CommandSettings", "benchmark": "Capitals"}
MODULES = {"check": "json_keys", "engine": "command", "benchmark": "capitals"}


def add(package: Path, kind: str) -> None:
    """What the docs say: the file into the package, its class into the import list and the union."""
    name, home = CLASSES[kind], package / f"{kind}s"
    shutil.copy(ADDING / f"{kind}.py", home / f"{MODULES[kind]}.py")
    init = home / "__init__.py"
    text = init.read_text(encoding="utf-8")
    union = f"Any{kind.capitalize()} = Annotated["
    text, count = re.subn(rf"^{re.escape(union)}\s*", f"{union}{name} | ", text, count=1, flags=re.MULTILINE)
    assert count == 1, f"{init} has no {union}"
    line = f"from sdft.{kind}s.{MODULES[kind]} import {name}\n"
    init.write_text(text.replace("\nfrom sdft.", f"\n{line}from sdft.", 1), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the four added to it, and the recipe."""
    place = tmp_path_factory.mktemp("adding")
    package = place / "src/sdft"
    shutil.copytree(ROOT / "src/sdft", package, ignore=shutil.ignore_patterns("__pycache__"))
    for kind in CLASSES:
        add(package, kind)
    with (package / "data/registry.yaml").open("a", encoding="utf-8") as file:
        file.write("\n" + (ADDING / "dataset.yaml").read_text(encoding="utf-8"))
    shutil.copy(ADDING / "recipe.yaml", place)
    save_tiny_model(place / "model")
    return place


def sdft(place: Path, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(place / "src"), "SDFT_DATA_DIR": str(ADDING)}
    command = [sys.executable, "-m", "sdft", *arguments]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "name"),
    [("datasets", "capitals"), ("checks", "json_keys"), ("engines", "command"), ("benchmarks", "capitals")],
)
def test_what_was_added_is_listed_with_its_first_line(place: Path, kind: str, name: str) -> None:
    assert re.search(rf"^{name} +\S", sdft(place, "list", kind), re.MULTILINE)


def test_check_finds_all_four_in_order(place: Path) -> None:
    said = sdft(place, "check", "recipe.yaml", "model=model", "--data")
    assert "data: 12 examples; of their own replies 0 do not pass the checks" in said
    wrong = place / "wrong.yaml"
    wrong.write_text((place / "recipe.yaml").read_text().replace("json_keys", "json_kyes"), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"'json_kyes'.*json_keys"):
        sdft(place, "check", "wrong.yaml", "model=model")


@pytest.mark.slow
def test_a_run_uses_all_four(place: Path) -> None:
    sdft(place, "run", "recipe.yaml", "model=model")
    run = place / "runs/recipe"
    choices = [json.loads(line) for line in (run / "select/choices.jsonl").read_text().splitlines()]
    assert [choice["source"] for choice in choices] == ["rewrite"] * 12
    [path] = run.glob("eval/seed/capitals/predictions.jsonl")
    values = {row["id"]: row["values"] for row in map(json.loads, path.read_text().splitlines())}
    assert values["Mali"] == {"accuracy": 1.0, "reply_words": 4.0}
    assert [values[country]["accuracy"] for country in ("Iceland", "Jordan", "Finland", "Laos")] == [0.0] * 4


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('{"capital": "Oslo", "country": "Norway"}', "ok"),
        ('Sure: {"capital": "Oslo"}', "no_object"),
        ("[1, 2]", "no_object"),
        ('{"country": "Norway"}', "keys_missing"),
        ('{"country": "Norway", "capital": "Oslo", "x": 1}', "keys_more"),
    ],
)
def test_verdicts_of_the_check(place: Path, reply: str, reason: str) -> None:
    rows = place / "rows.jsonl"
    label = '{"country": "Norway", "capital": "Oslo"}'
    rows.write_text(json.dumps({"label": label, "predict": reply}) + "\n", encoding="utf-8")
    assert f'"reason": "{reason}"' in sdft(place, "score", "--check", "json_keys", "rows.jsonl")


def test_the_data_file_has_the_hash_that_the_entry_names() -> None:
    import hashlib

    entry = (ADDING / "dataset.yaml").read_text(encoding="utf-8")
    assert hashlib.sha256((ADDING / "capitals/capitals.jsonl").read_bytes()).hexdigest() in entry


def test_the_engine_reports_a_program_that_fails(place: Path) -> None:
    code = (
        "from sdft.engines.command import CommandSettings as C\nfrom sdft.engines import Request, Sampling\n"
        "def ask(*argv, **more):\n"
        "    engine = C(argv=argv, **more).open(None)\n"
        "    [done] = engine.generate([Request('a', 'one two three', stop=('three',))], Sampling(max_new_tokens=2))\n"
        "    return done\n"
        "print(ask('cat').text, ask('cat').finish, '|', ask('false').error, '|', ask('sleep', '9', seconds=0.2).error)"
    )
    env = os.environ | {"PYTHONPATH": str(place / "src")}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said == "one two length | exit code 1:  | no reply within 0.2 s\n"
