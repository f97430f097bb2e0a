"""The report: what it says, that it says no more than the intervals, and that nothing breaks it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_report import (
    DIFFERENCES,
    choice,
    demo_run,
    load,
    recipe,
    score,
    write_analysis,
    write_data,
    write_manifest,
    write_scores,
    write_selection,
)
from sdft.console import Console
from sdft.errors import RunError
from sdft.records import CandidateVerdict, Choice, Comparison
from sdft.report import charts, units
from sdft.report.parts import Selection, Training
from sdft.report.schema import Report
from sdft.report.source import read_run
from sdft.report.text import excerpt, markdown, word_diff
from sdft.rundir import RunDir, read_json, write_json, write_jsonl
from sdft.stages.report import build_report, run_report
from sdft.visible import HIDDEN, visible

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements are balanced, and keeps elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    """The demo run, to be spoilt."""
    return Path(shutil.copytree(demo, tmp_path / "demo"))


def texts(report: dict[str, Any], topic: str | None = None) -> list[str]:
    statements = report["verdict"]["statements"]
    return [s["text"].replace("\N{NO-BREAK SPACE}", " ") for s in statements if topic in (None, s["topic"])]


def headline(report: dict[str, Any]) -> str:
    return str(report["verdict"]["headline"]).replace("\N{NO-BREAK SPACE}", " ")


# What it says


def test_verdict_names_gain_drift_and_price(demo: Path) -> None:
    report = load(build_report(demo).json)
    assert headline(report) == (
        "Both methods improved on the task. SDFT stayed closer to the seed than vanilla fine-tuning: "
        "0.062 against 0.203 nats per token. Against vanilla fine-tuning SDFT gives up 11.0 points on reasoning_gym."
    )
    assert (
        "Vanilla fine-tuning raised reasoning_gym accuracy from 12.0 % to 52.0 % "
        "(+40.0 points, 95 % interval +30.0 to +49.0)."
    ) in texts(report, "task")
    assert (
        "Vanilla fine-tuning shortened replies to drift prompts from 56 to 8.1 words "
        "(−48 words, 95 % interval −56 to −41)."
    ) in texts(report, "retention")
    assert any(t.startswith("SDFT: replies to drift prompts went from 56 to 56 words") for t in texts(report))
    tones = {(s["topic"], s["model"], s["tone"]) for s in report["verdict"]["statements"]}
    assert {("task", "sft", "good"), ("methods", "sdft", "bad"), ("retention", "sdft", "noise")} <= tones


def change_comparison(folder: Path, key: tuple[str, str, str, str], difference: float, low: float, high: float) -> None:
    path = folder / "eval" / "comparisons.json"
    rows = read_json(path)
    for row in rows:
        if (row["model"], row["baseline"], row["benchmark"], row["metric"]) == key:
            row |= {"difference": difference, "low": low, "high": high}
    write_json(path, rows)


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(-0.21, -0.01, "bad"), (-0.21, 0.0, "noise"), (-0.2, 0.01, "noise"), (0.01, 0.2, "good")]
)
def test_a_difference_counts_only_where_its_interval_excludes_zero(
    copy: Path, low: float, high: float, tone: str
) -> None:
    change_comparison(copy, ("sdft", "sft", "reasoning_gym", "accuracy"), (low + high) / 2, low, high)
    report = load(build_report(copy).json)
    statements = report["verdict"]["statements"]
    found = next(s for s in statements if s["topic"] == "methods" and "accuracy" in s["text"])
    assert found["tone"] == tone
    assert ("gives up" in headline(report)) == (tone == "bad")
    assert ("within noise of each other" in headline(report)) == (tone == "noise")
    assert ("SDFT gains" in headline(report)) == (tone == "good")


def test_noise_against_the_seed_is_no_gain(copy: Path) -> None:
    change_comparison(copy, ("sdft", "seed", "reasoning_gym", "accuracy"), 0.05, -0.02, 0.12)
    report = load(build_report(copy).json)
    assert headline(report).startswith(
        "Vanilla fine-tuning improved on the task; SDFT showed no change on the task beyond noise."
    )
    assert any(t.startswith("SDFT: reasoning_gym") and t.endswith("within noise.") for t in texts(report, "task"))


def test_without_intervals_nothing_is_claimed(copy: Path) -> None:
    (copy / "eval" / "comparisons.json").unlink()
    files = build_report(copy)
    report = load(files.json)
    assert {s["tone"] for s in report["verdict"]["statements"]} == {"plain"}
    assert "improved" not in headline(report)
    assert any("comparisons.json" in line for line in report["missing"])
    page = Page(files.html)
    assert not [
        value for _, name, value in page.attributes if name == "class" and value in ("change good", "change bad")
    ]
    assert "+40.0" in page.words  # the number stands there, without colour


def test_a_lower_is_better_metric_that_rises_is_a_loss(copy: Path) -> None:
    for model, value in (("seed", 0.1), ("sft", 0.3), ("sdft", 0.12)):
        rows = [score(model, "toxic", "rate", (value, value - 0.02, value + 0.02), 500, kind="rate", better="lower")]
        write_scores(copy, model, "toxic", "retention", rows)
    path = copy / "eval" / "comparisons.json"
    new = [("sft", 0.2, 0.15, 0.25), ("sdft", 0.02, -0.01, 0.05)]
    more = [
        Comparison(
            model=m,
            baseline="seed",
            benchmark="toxic",
            metric="rate",
            difference=d,
            low=lo,
            high=hi,
            n=500,
            p_value=0.1,
        ).model_dump()
        for m, d, lo, hi in new
    ]
    write_json(path, read_json(path) + more)
    report = load(build_report(copy).json)
    assert headline(report).endswith("Vanilla fine-tuning lost on toxic.")
    assert any("raised toxic rate" in t and t.endswith("which is worse.") for t in texts(report))


def test_scoreboard_has_values_intervals_and_colour_for_what_is_significant(demo: Path) -> None:
    page = Page(build_report(demo).html)
    for shown in ("12.0 %", "52.0 %", "42.3 to 61.5", "+40.0", "+30.0 to +49.0", "0.203 nats", "8.1 words", "−48"):
        assert shown in page.words.replace("\N{NO-BREAK SPACE}", " "), shown
    marks = Counter(value for tag, name, value in page.attributes if tag == "span" and name == "class")
    # +40, +29 and the pair's drift; −11; words −48 and +48: each in the scoreboard and in the table of differences.
    assert (marks["change good"], marks["change bad"], marks["change moved"]) == (6, 2, 4)
    hovers = [value or "" for tag, name, value in page.attributes if name == "title"]
    assert any("n = 100" in hover and "greedy" in hover for hover in hovers)


def test_all_pictures_of_a_whole_run_are_there(demo: Path) -> None:
    page = Page(build_report(demo).html)
    figures = [value for tag, name, value in page.attributes if tag == "figure" and name == "id"]
    assert figures == [
        "gain-reasoning_gym", "selection", "lengths", "loss", "drift-drift", "reply-words-drift"
    ]  # fmt: skip
    assert page.tags["svg"] == len(figures)
    assert page.tags["article"] == 20


def test_analyses_are_shown_in_pictures_tables_and_words(copy: Path) -> None:
    write_analysis(copy)
    files = build_report(copy)
    page = Page(files.html)
    figures = [value for tag, name, value in page.attributes if tag == "figure" and name == "id"]
    drawn = ("similarity", "bleu4", "rouge-l", "bleu4-characters", "rouge-l-tokens")
    likenesses = [f"{metric}-{label}" for label in ("reasoning_gym", "drift") for metric in drawn]
    assert figures[6:] == ["likelihood", *likenesses, "weights"]
    for shown in ("6.900", "6.800 to 7.000", "0.88 (0.85 to 0.91)", "42 of them rewritten", "−6.300 nats"):
        assert shown in page.words.replace("\N{NO-BREAK SPACE}", " "), shown
    assert "| Seed | 6.900 (6.800 to 7.000) | 0.600 (0.500 to 0.700) |" in files.markdown
    assert "SDFT on drift against the seed's replies: embedding similarity 0.88" in files.markdown
    again = Report.model_validate_json(files.json).analysis
    assert again is not None and again.nll is not None
    assert again.nll.gaps["seed"].value == -6.3
    assert len(again.weights["sdft"].layers) == 30


def test_the_page_needs_nothing_from_outside(demo: Path) -> None:
    html = build_report(demo).html
    page = Page(html)
    assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name in ("src", "href", "action") or name.startswith("on")]
    assert not [name for _, name, _ in page.attributes if name == "style"]
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html and "unsafe-inline" not in html


def test_the_policy_allows_our_own_script_and_style_alone(demo: Path) -> None:
    html = build_report(demo).html
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{hashed}'" in policy.group(1)
    kinds = re.findall(r"<script([^>]*)>", html)
    assert [kind for kind in kinds if 'type="application/json"' not in kind] == [""]


def test_markdown_has_verdict_scoreboard_and_selection(demo: Path) -> None:
    text = build_report(demo).markdown.replace("\N{NO-BREAK SPACE}", " ")
    assert "**Both methods improved on the task." in text
    assert "| reasoning_gym, accuracy (n = 100) | 12.0 % (7.0 to 19.8) | 52.0 % (42.3 to 61.5), **+40.0** |" in text
    assert "600 examples: 70 % rewritten (10 % equal to the original), 30 % kept as they were." in text
    assert "| number_differs | 60 |" in text


def test_json_keeps_the_stored_numbers_and_its_schema(demo: Path) -> None:
    raw = build_report(demo).json
    report = load(raw)
    assert report["schema_version"] == 1
    again = Report.model_validate_json(raw)  # refuses unknown fields
    row = again.benchmarks[0].main
    assert (row.values["sft"].value, row.unit) == (0.52, "percent")
    assert row.against("sdft", "sft") is not None
    units_of = {r.metric: r.unit for r in again.benchmarks[1].metrics}
    assert units_of == {"kl": "nats", "same_argmax": "percent", "reply_words": "words"}
    assert again.selection is not None and again.selection.refused == {"number_differs": 60, "leak": 60, "cut_off": 60}
    assert len(again.training["sft"].loss) == 76
    assert len(DIFFERENCES) == sum(len(r.differences) for t in again.benchmarks for r in t.metrics)


def test_the_same_files_give_the_same_report(demo: Path) -> None:
    assert build_report(demo) == build_report(demo)


def test_run_report_writes_three_files(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run_report(RunDir(copy), Console())
    assert page == copy / "report" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    assert page.read_text(encoding="utf-8") == build_report(copy).html
    assert str(page) in capsys.readouterr().err


def test_no_heavy_import(demo: Path) -> None:
    code = (
        "import sys, pathlib; from sdft.stages.report import build_report; "
        f"build_report(pathlib.Path({str(demo)!r})); "
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'scipy', 'numpy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


# Missing and broken parts


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        build_report(tmp_path / "nowhere")


def test_an_empty_folder_gives_a_report_that_says_so(tmp_path: Path) -> None:
    files = build_report(tmp_path)
    report = load(files.json)
    Page(files.html)
    assert headline(report) == "Nothing has been evaluated, so there is nothing to conclude yet."
    assert {"manifest.json is not there", "recipe.yaml is not there", "select/summary.json is not there"} <= set(
        report["missing"]
    )


def test_a_run_stopped_before_select(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    write_data(tmp_path, 7)
    report = load(build_report(tmp_path).json)
    assert report["rows"] == 7
    assert report["seed_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert report["selection"] is None
    assert "train: nothing has been trained yet" in report["missing"]


def test_a_run_with_sft_alone_misses_nothing(tmp_path: Path) -> None:
    files = build_report(demo_run(tmp_path / "run", methods=("sft",)))
    report = load(files.json)
    assert report["missing"] == []
    assert headline(report) == "Vanilla fine-tuning improved on the task."
    page = Page(files.html)
    assert page.tags["article"] == 0
    assert "SDFT" not in page.words


def test_without_drift_the_picture_shows_retention_loss(copy: Path) -> None:
    for model, value in (("seed", 0.6), ("sft", 0.5), ("sdft", 0.59)):
        shutil.rmtree(copy / "eval" / model / "drift")
        write_scores(
            copy, model, "ifeval", "retention",
            [score(model, "ifeval", "strict", (value, value - 0.04, value + 0.04), 540, kind="rate")],
        )  # fmt: skip
    rows = [
        Comparison(
            model=m, baseline="seed", benchmark="ifeval", metric="strict", difference=d, low=d - 0.03, high=d + 0.03,
            n=540, p_value=0.01,
        ).model_dump()
        for m, d in (("sft", -0.1), ("sdft", -0.01))
    ]  # fmt: skip
    path = copy / "eval" / "comparisons.json"
    write_json(path, [row for row in read_json(path) if row["benchmark"] != "drift"] + rows)
    files = build_report(copy)
    assert "loss on retention, points" in Page(files.html).words
    assert headline(load(files.json)).endswith("Vanilla fine-tuning lost on ifeval.")
    assert "eval/sft/drift has no scores" in load(files.json)["missing"]


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json", "recipe.yaml", "data/train.jsonl", "select/summary.json", "select/choices.jsonl",
        "train/sft/training.json", "train/sdft/trainer_state.json", "eval/sft/reasoning_gym/scores.json",
        "eval/comparisons.json", "eval/sdft/drift/predictions.jsonl", "analyze/nll.json", "analyze/nll.jsonl",
        "analyze/shift.json", "analyze/shift.jsonl", "analyze/weights.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("content", [None, b"", b"{\n", b"[1, 2]\n", b'{"a": NaN}\n', b"\xff\xfe\x00\n", b"null\n"])
def test_no_broken_file_stops_the_report(copy: Path, name: str, content: bytes | None) -> None:
    if name.startswith("analyze"):
        write_analysis(copy)
    path = copy / name
    path.unlink() if content is None else path.write_bytes(content)
    files = build_report(copy)
    Page(files.html)
    report = load(files.json)
    harmless = name == "recipe.yaml" and content != b"\xff\xfe\x00\n"  # the manifest holds the recipe too
    harmless |= content in (None, b"") and name.endswith(("predictions.jsonl", "trainer_state.json", "train.jsonl"))
    harmless |= content == b"" and name == "select/choices.jsonl"
    harmless |= name.startswith("analyze") and content == (b"" if name.endswith("l") else None)  # not asked for
    empty_manifest = name == "manifest.json" and content == b'{"a": NaN}\n'
    assert report["missing"] or harmless or empty_manifest


def test_numbers_that_are_none_become_null(copy: Path) -> None:
    path = copy / "eval" / "sft" / "reasoning_gym" / "scores.json"
    path.write_text(path.read_text().replace("0.52", "NaN"))
    files = build_report(copy)
    Page(files.html)
    assert load(files.json)["benchmarks"][0]["metrics"][0]["values"]["sft"]["value"] is None


# The sample of rewrites


def test_the_sample_is_varied_and_always_the_same(tmp_path: Path) -> None:
    write_data(tmp_path, 500)
    write_selection(tmp_path, 500)
    picks = read_run(tmp_path).picks
    reasons = Counter(pick.choice.verdict.reason for pick in picks)
    assert len(picks) == 20
    assert reasons["ok"] + reasons["identical"] == 10
    assert all(3 <= reasons[reason] <= 4 for reason in ("number_differs", "leak", "cut_off"))
    assert {pick.choice.candidate for pick in picks} == {None, 0, 1}
    assert all(pick.instruction and pick.instruction.startswith("State the final") for pick in picks)
    assert picks == read_run(tmp_path).picks


@pytest.mark.parametrize(("rows", "step"), [(3, 1), (12, 1), (400, 10)])
def test_a_small_or_one_sided_selection_is_shown_as_far_as_it_goes(tmp_path: Path, rows: int, step: int) -> None:
    choices = [choice(i) for i in range(0, rows, step)]  # steps of ten: all refused for one reason
    write_jsonl(tmp_path / "select" / "choices.jsonl", choices)
    assert len(read_run(tmp_path).picks) == min(20, len(choices))


# Untrusted text

NASTY = (
    '<script>alert(1)</script></script></style></textarea>--><svg onload=alert(2)><img src=x onerror="alert(3)">'
    "' onmouseover='alert(4)' \" autofocus onfocus=\"alert(5) {{ 7*7 }} &lt;b&gt; \x00\x07\x1b[31m \u202eabc\u2066 "
    "\u200b \U000e0041 \u2028 end"
)


def nasty_run(folder: Path) -> Path:
    """The demo with hostile text wherever text from data or models can stand."""
    demo_run(folder, rows=0)
    refused = choice(1)
    verdict = refused.verdict.model_copy(update={"reason": NASTY, "detail": NASTY})
    candidates = (CandidateVerdict(candidate=0, text=NASTY, verdict=verdict),)
    rows = [
        choice(9, original=NASTY, reply=NASTY + " more").model_copy(update={"example_id": NASTY}),
        refused.model_copy(update={"original": NASTY, "verdict": verdict, "candidates": candidates}),
    ]
    write_jsonl(folder / "select" / "choices.jsonl", rows)
    summary = read_json(folder / "select" / "summary.json")
    write_json(folder / "select" / "summary.json", summary | {"reasons": {NASTY: 3}, "examples": 10})
    tree = recipe(("sft", "sdft"))
    tree["name"] = tree["model"]["name"] = tree["data"]["dataset"] = NASTY
    keyed = {NASTY: NASTY}
    write_manifest(
        folder, recipe=tree, name=NASTY, created=NASTY, versions=keyed, hardware=keyed, hashes=keyed, notes=[NASTY],
        sdft=NASTY,
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(f"# {visible(NASTY)}\nname: demo\n", encoding="utf-8")
    write_analysis(folder, methods=(NASTY, "sdft"), labels=(NASTY, "drift"))
    for model in ("seed", "sft", "sdft"):
        rows_ = [score(model, NASTY, NASTY, (0.5, 0.4, 0.6), 10, kind="rate")]
        sampling = {"temperature": NASTY, "max_new_tokens": NASTY}
        write_scores(folder, model, "odd", "task", rows_, notes=[NASTY], sampling=sampling)
        path = folder / "eval" / model / "odd" / "scores.json"
        write_json(path, read_json(path) | {"label": NASTY})
        path = folder / "eval" / model / "drift" / "scores.json"
        scores = read_json(path)
        write_json(path, scores | {"groups": {NASTY: {"kl": 0.1}}})
    return folder


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    files = build_report(nasty_run(tmp_path / "run"))
    page = Page(files.html)  # balanced
    write_analysis(demo_run(tmp_path / "plain"))
    plain = Page(build_report(tmp_path / "plain").html)
    assert set(page.tags) <= set(plain.tags)  # no element that a harmless page does not have
    assert {name for _, name, _ in page.attributes} <= {name for _, name, _ in plain.attributes}
    assert "<script>alert(1)</script>" in page.words
    assert "{{ 7*7 }}" in page.words
    assert HIDDEN.search(files.html) is None
    assert HIDDEN.search(files.markdown) is None
    assert "[U+202E]abc[U+2066]" in page.words
    assert "<script" not in files.markdown and "<img" not in files.markdown
    load(files.json)


def test_a_reply_of_a_megabyte_is_shortened_with_a_note(tmp_path: Path) -> None:
    demo_run(tmp_path, rows=0)
    long = "spam </div><b> " * 70_000
    long_choice = choice(9, original=long, reply=long + "the end")
    write_jsonl(tmp_path / "select" / "choices.jsonl", [long_choice])
    files = build_report(tmp_path)
    assert len(files.html) < 300_000
    words = Page(files.html).words
    assert f"shortened: {len(long):,} characters, 140,000 words in all" in words
    assert "the end" in words


def test_refused_and_missing_rewrites_are_shown(tmp_path: Path) -> None:
    demo_run(tmp_path, rows=0)
    none = Choice(
        example_id="x", response="a", source="original", verdict=choice(0).verdict, candidate=None, original="a"
    )
    empty = choice(9, original="", reply="")
    write_jsonl(tmp_path / "select" / "choices.jsonl", [none, empty.model_copy(update={"example_id": "y"})])
    words = Page(build_report(tmp_path).html).words
    assert "None was generated." in words
    assert "(empty)" in words


@given(st.text())
def test_visible_leaves_no_hidden_character_and_is_idempotent(text: str) -> None:
    shown = visible(text)
    assert HIDDEN.search(shown) is None
    assert visible(shown) == shown
    shown.encode("utf-8")


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_word_diff_holds_both_texts(old: str, new: str) -> None:
    runs = word_diff(old, new)
    assert "".join(text for kind, text in runs if kind != "added") == old
    assert "".join(text for kind, text in runs if kind != "removed") == new


@given(st.text(min_size=1, max_size=20), st.integers(1, 2500))
def test_an_excerpt_is_never_long(text: str, times: int) -> None:
    short = excerpt(text * times)
    assert bool(short.note) == (len(text) * times > 2400)
    assert len(short.text) <= 2400 * 9  # every character hidden, each written as [U+…]


@given(st.text())
def test_markdown_cells_hold_no_markup(text: str) -> None:
    cell = markdown(text)
    assert "\n" not in cell and "<" not in cell
    assert "|" not in cell.replace("\\|", "")


# Numbers and charts


@pytest.mark.parametrize(
    ("value", "unit", "plain", "with_sign"),
    [
        (0.52, "percent", "52.0", "+52.0"), (-0.11, "percent", "−11.0", "−11.0"), (-0.0001, "percent", "0.0", "0.0"),
        (0.2034, "nats", "0.203", "+0.203"), (56.2, "words", "56", "+56"), (8.13, "words", "8.1", "+8.1"),
        (1234.5, "words", "1,234", "+1,234"), (0.0, "number", "0", "0"), (None, "percent", "–", "–"),
        (float("nan"), "nats", "–", "–"),
    ],
)  # fmt: skip
def test_numbers_read_well(value: float | None, unit: units.Unit, plain: str, with_sign: str) -> None:
    assert units.number(value, unit) == plain
    assert units.signed(value, unit) == with_sign


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_the_range_in_even_steps(low: float, width: float) -> None:
    marks = charts.ticks(low, low + width)
    slack = 1e-6 * max(1.0, abs(low), width)
    assert marks[0] <= low + slack and marks[-1] >= low + width - slack
    assert 2 <= len(marks) <= 9


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-0.5, 1), st.text(max_size=20)), min_size=1, max_size=4))
def test_scatter_stays_inside_and_escapes(points: list[tuple[float, float, str]]) -> None:
    svg = charts.scatter("t", [charts.Point(label, "a", x, y, (x, x), (y, y)) for x, y, label in points], "x", "y")
    page = Page(svg)
    assert set(page.tags) <= {"svg", "line", "circle", "text", "title"}
    for tag, name, value in page.attributes:
        if tag == "circle" and name in ("cx", "cy"):
            assert -1 <= float(value or "nan") <= charts.WIDTH + 1


def test_a_long_curve_is_thinned_without_changing_its_mean() -> None:
    values = [(step, step % 7 + 1.0) for step in range(100_000)]
    thin = charts.thin_out(values)
    assert len(thin) <= 300
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(y for _, y in values) / len(values), abs=0.02)
    assert charts.thin_out([]) == []


def test_charts_of_nothing_are_drawn() -> None:
    for svg in (
        charts.scatter("t", [charts.Point("seed", "seed", 0, 0)], "x", "y"), charts.bars("t", []),
        charts.grouped_bars("t", [], "x"), charts.histograms("t", [], [], "x", "y"), charts.lines("t", [], "x", "y"),
        charts.boxes("t", [charts.Box("m", "a", 0, (0, 0, 0), 0, 0)], "x"),
        charts.bars("t", [charts.Bar("zero", "a", 0, "0")]), charts.overlaid("t", [], "x", "y"),
        charts.overlaid("t", [charts.Sample("m", "a", [1.0, 1.0], 1.0, (1.0, 1.0), "1")], "x", "y"),
        charts.tracks("t", [], [], "x", "y"), charts.tracks("t", ["0"], [charts.Track("m", "a", [None])], "x", "y"),
    ):  # fmt: skip
        Page(svg)
        assert "nan" not in svg


def test_file_forms_take_fields_that_they_do_not_know() -> None:
    summary = {"examples": 1, "rewritten": 1, "kept": 0, "share_rewritten": 1.0, "future": [1]}
    assert Selection.model_validate(summary).accepted_at == []
    assert Training.model_validate({"method": "sft", "more": 1}).rows is None


def test_many_differences_within_noise_are_put_away(demo: Path, copy: Path) -> None:
    assert "<details>" not in build_report(demo).markdown
    for kind in ("eval/seed", "eval/sft", "eval/sdft"):
        scores = read_json(copy / kind / "drift/scores.json")
        for number in range(8):
            write_json(copy / kind / f"more{number}/scores.json", scores | {"label": f"more{number}"})
    rows = read_json(copy / "eval/comparisons.json")
    quiet = [
        r | {"benchmark": f"more{n}", "low": -9.0, "high": 9.0}
        for n in range(8)
        for r in rows
        if r["benchmark"] == "drift"
    ]
    write_json(copy / "eval/comparisons.json", rows + quiet)
    files = build_report(copy)
    text = files.markdown
    before, put_away = text.split("<details>")[:2]
    assert "within noise</summary>" in put_away and "within noise." in put_away
    assert "Vanilla fine-tuning raised reasoning_gym" in before.replace("\N{NO-BREAK SPACE}", " ")
    assert text.count("<details>") == text.count("</details>")
    assert "differences within noise</summary>" in files.html
