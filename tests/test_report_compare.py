"""Several runs in one page."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import pytest

from helpers_report import OK, demo_run, recipe, write_manifest
from sdft import cli
from sdft.comparing import compare_runs, sort_arguments
from sdft.errors import RecipeError, RunError
from sdft.records import Prediction
from sdft.report import charts
from sdft.report.compare import Comparison, compare, render_html, render_markdown
from sdft.rundir import write_jsonl
from sdft.visible import HIDDEN
from test_report import NASTY, Page, change_comparison, nasty_run


def variant(folder: Path, name: str, epochs: int, gain: float) -> Path:
    """The demo with another number of epochs and another gain of SDFT."""
    demo_run(folder, rows=20)
    tree = recipe(("sft", "sdft")) | {"name": name, "train": {"epochs": epochs}}
    write_manifest(folder, recipe=tree, name=name)
    change_comparison(folder, ("sdft", "seed", "reasoning_gym", "accuracy"), gain, gain - 0.1, gain + 0.1)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [variant(tmp_path / "short", "short", 1, 0.2), variant(tmp_path / "long", "long", 4, 0.35)]


def test_settings_scores_and_picture_of_all_runs(runs: list[Path]) -> None:
    made = compare(runs)
    assert made.runs[0].settings == {"train.epochs": "1"} and made.runs[1].settings == {"train.epochs": "4"}
    html = render_html(made)
    page = Page(html)
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    for shown in ("short: SDFT", "long: Vanilla fine-tuning", "train.epochs", "+35.0", "+25.0 to +45.0"):
        assert shown in words, shown
    heads = words.split("Scoreboard", 1)[1].split("Task:")[0]
    assert heads.count("Seed") == 1  # alike in both runs
    figures = [value for tag, name, value in page.attributes if tag == "figure" and name == "id"]
    assert figures == ["gain-reasoning_gym"]
    assert "Dashed: the frontier" in words and 'class="edge"' in html
    text = render_markdown(made)
    assert "| train.epochs | 1 | 4 |" in text
    assert "**+35.0**" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_seeds_that_differ_have_columns_of_their_own_and_a_note(runs: list[Path]) -> None:
    path = runs[1] / "eval" / "seed" / "reasoning_gym" / "scores.json"
    path.write_text(path.read_text().replace("0.12", "0.15").replace('"n": 100', '"n": 90'))
    other = runs[1] / "eval" / "sft" / "reasoning_gym" / "scores.json"
    other.write_text(other.read_text().replace('"max_new_tokens": 48', '"max_new_tokens": 99'))
    for model in ("sft", "sdft"):
        scores = runs[1] / "eval" / model / "reasoning_gym" / "scores.json"
        scores.write_text(scores.read_text().replace('"n": 100', '"n": 90'))
    made = compare(runs)
    words = Page(render_html(made)).words
    assert "short: Seed" in words and "long: Seed" in words
    assert any("different numbers of rows" in note for note in made.notes)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    made = compare([demo_run(tmp_path / "a" / "demo", rows=0), demo_run(tmp_path / "b" / "demo", rows=0)])
    assert [run.name for run in made.runs] == ["a/demo", "b/demo"]
    assert made.runs[0].settings == {}
    assert "the recipes are equal" in Page(render_html(made)).words


def test_runs_with_nothing_in_them_are_compared_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = compare([tmp_path / "a", demo_run(tmp_path / "b", methods=("sft",), rows=0)])
    Page(render_html(made))
    assert "manifest.json is not there" in render_markdown(made)


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    made = compare([nasty_run(tmp_path / "a"), demo_run(tmp_path / "b", rows=0)])
    html = render_html(made)
    page, plain = Page(html), Page(render_html(compare([demo_run(tmp_path / "c", rows=0), tmp_path / "b"])))
    assert set(page.tags) <= set(plain.tags)
    assert {name for _, name, _ in page.attributes} <= {name for _, name, _ in plain.attributes}
    assert HIDDEN.search(html) is None
    assert "<script>alert(1)</script>" in page.words
    assert "<script" not in render_markdown(made) and NASTY not in render_markdown(made)


def replies(folder: Path, right: dict[str, int], rows: int = 40) -> None:
    """Predictions of the task in which the first rows are right."""
    for model, number in right.items():
        found = [
            Prediction(
                id=f"r{i}", label=str(i), predict=str(i) if i < number else "?", finish="stop", tokens=1, verdict=OK,
                values={"accuracy": float(i < number)},
            )
            for i in range(rows)
        ]  # fmt: skip
        write_jsonl(folder / "eval" / model / "reasoning_gym" / "predictions.jsonl", found)


def test_runs_are_compared_row_by_row(runs: list[Path]) -> None:
    replies(runs[0], {"seed": 5, "sft": 20, "sdft": 10})
    replies(runs[1], {"seed": 5, "sft": 22, "sdft": 25})
    made = compare(runs)
    pairs = {pair.difference.model: pair for pair in made.differences if pair.metric == "accuracy"}
    assert set(pairs) == {"sft", "sdft"}  # the seeds are alike in every row
    better, even = pairs["sdft"].difference, pairs["sft"].difference
    assert (pairs["sdft"].run, pairs["sdft"].baseline_run, better.n) == ("long", "short", 40)
    assert better.difference == pytest.approx(15 / 40) and better.significant and better.better
    assert better.p_value == pytest.approx(2 * 0.5**15)  # fifteen rows gained, none lost
    assert even.difference == pytest.approx(2 / 40) and not even.significant
    words = Page(render_html(made)).words.replace("\N{NO-BREAK SPACE}", " ")
    shown = words.split("Between the runs", 1)[1]
    assert "SDFT: long \N{MINUS SIGN} short" in shown and "+37.5 points" in shown
    assert "| **+37.5 points** |" in render_markdown(made).replace("\N{NO-BREAK SPACE}", " ")


def test_only_rows_that_both_were_asked_are_paired(runs: list[Path]) -> None:
    replies(runs[0], {"sdft": 10}, rows=30)
    replies(runs[1], {"sdft": 25})
    [pair] = [pair for pair in compare(runs).differences if pair.benchmark == "reasoning_gym"]
    assert pair.difference.n == 30 and pair.difference.difference == pytest.approx(15 / 30)


def test_what_cannot_be_paired_is_told(runs: list[Path]) -> None:
    replies(runs[0], {"sdft": 10})
    replies(runs[1], {"sdft": 25})
    path = runs[1] / "eval/sdft/reasoning_gym/predictions.jsonl"
    text = path.read_text(encoding="utf-8")
    for changed, why in (
        (text.replace('"id":"r', '"id":"other'), "share no row"),
        (text.replace('"label":"3"', '"label":"4"'), "other references"),
        ("{}\n", "not a Prediction"),
    ):
        path.write_text(changed, encoding="utf-8")
        made = compare(runs)
        assert not [pair for pair in made.differences if pair.benchmark == "reasoning_gym"]
        assert any(note.startswith("reasoning_gym: long and short") and why in note for note in made.notes), made.notes


def test_runs_with_one_method_each_are_compared(tmp_path: Path) -> None:
    folders = [demo_run(tmp_path / name, methods=(name,), rows=0) for name in ("sft", "sdft")]
    for folder, right in zip(folders, (10, 25), strict=True):
        replies(folder, {folder.name: right})
    [pair] = [pair for pair in compare(folders).differences if pair.benchmark == "reasoning_gym"]
    assert (pair.difference.model, pair.difference.baseline) == ("sdft", "sft")


def test_the_frontier_is_what_no_other_point_beats() -> None:
    places = [(0, 0), (1, 5), (2, 4), (2, 7), (1, 3), (3, 7)]
    points = [charts.Point("p", "a", x, y) for x, y in places]
    assert charts.frontier(points) == [(0, 0), (1, 5), (2, 7)]
    assert charts.frontier([]) == []


def test_arguments_are_runs_or_settings(tmp_path: Path) -> None:
    point = tmp_path / "train.epochs=1,seed=2"
    demo_run(point, rows=0)
    assert sort_arguments([str(point), "a", "b.c=1"]) == ([str(point), "a"], ["b.c=1"])
    with pytest.raises(RecipeError, match="name a run"):
        sort_arguments(["a.b=1"])


def test_the_page_lies_beside_the_first_run(runs: list[Path]) -> None:
    page = compare_runs([str(run) for run in runs], [])
    assert page == runs[0].parent / "comparison.html"
    made = Comparison.model_validate_json(page.with_suffix(".json").read_bytes())
    assert [run.name for run in made.runs] == ["short", "long"]
    assert page.with_suffix(".md").is_file()
    other = compare_runs([str(run) for run in runs], [], runs[0].parent / "new" / "two.html")
    assert other.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_mistakes_are_named(runs: list[Path]) -> None:
    with pytest.raises(RunError, match="named twice"):
        compare_runs([str(runs[0]), f"{runs[0]}/"], [])
    with pytest.raises(RecipeError, match="settings are for one run"):
        compare_runs([str(run) for run in runs], ["train.epochs=1"])
    with pytest.raises(RunError, match="a name of its own"):
        compare_runs([str(run) for run in runs], [], runs[0])


def test_the_command_writes_and_opens_the_page(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "argv", ["sdft", "report", *map(str, runs), "--open"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code in (None, 0)
    page = runs[0].parent / "comparison.html"
    assert capsys.readouterr().out == f"report: {page}\n"
    assert opened == [page.as_uri()]
