"""The report's pages in a browser: Debian's chromium, headless, from disk and without a network."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers_report import choice, demo_run, write_analysis, write_data, write_predictions, write_selection
from sdft.comparing import compare_runs
from sdft.console import Console
from sdft.records import ReplyNll
from sdft.report.browse import IN_PAGE
from sdft.rundir import RunDir, read_jsonl, write_jsonl
from sdft.stages.report import run_report
from test_report import nasty_run
from test_report_compare import variant

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip("Debian's chromium is not installed: `make browser` as root", allow_module_level=True)

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=[*QUIET.split(), "--no-first-run"], timeout=120_000
        )
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def show(chromium: Browser) -> Iterator[Open]:
    """Open a page of the disk; at the test's end nothing may have been said in the console, or asked of a network."""
    said: list[str] = []
    contexts = []

    def opened(page: Path, address: str = "", **options: Any) -> Page:
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        tab.on("request", lambda request: request.url.startswith("file:") or said.append(f"asked for {request.url}"))
        tab.goto(page.resolve().as_uri() + address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run: its rows stand in the page."""
    folder = demo_run(tmp_path_factory.mktemp("browser") / "demo", rows=300)
    write_analysis(folder)
    path = folder / "analyze" / "nll.jsonl"
    rows = list(read_jsonl(path, ReplyNll))
    names = (f"chain_sum-{int(row.example_id.removeprefix('e')):04d}" for row in rows)
    write_jsonl(path, [row.model_copy(update={"example_id": name}) for row, name in zip(rows, names, strict=True)])
    write_predictions(folder, "reasoning_gym")
    page = run_report(RunDir(folder), Console(quiet=True))
    assert not (page.parent / "rows").exists()
    return page


def status(tab: Page, kind: str = "rewrites") -> str:
    return tab.locator(f"#{kind} .status").inner_text()


def listed(tab: Page, kind: str = "rewrites") -> list[str]:
    """Ids of the rows in the list's page, from the top."""
    rows = tab.locator(f"#{kind} [role=option]")
    found = rows.evaluate_all("all => all.map(row => [Number(row.ariaPosInSet), row.querySelector('.id').textContent])")
    return [name for _, name in sorted(found)]


def opened(tab: Page, kind: str = "rewrites") -> str:
    return tab.locator(f"#{kind} .detail h3").inner_text()


def wait_for(tab: Page, text: str, kind: str = "rewrites") -> None:
    tab.locator(f"#{kind} .status", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()


def test_it_loads_and_shows_the_first_row(show: Open, demo: Path) -> None:
    tab = show(demo)
    wait_for(tab, "300 rows")
    assert opened(tab) == "chain_sum-0000"
    assert len(listed(tab)) < 40  # only what is in sight
    assert not tab.locator(".sample").is_visible()  # that is for paper
    tab.emulate_media(media="print")
    assert tab.locator(".sample").is_visible()
    assert not tab.locator("#rewrites .browser").is_visible()


def test_the_scoreboard_sorts_benchmarks_within_their_role(show: Open, demo: Path) -> None:
    tab = show(demo)
    board = tab.locator("#scoreboard table")
    retention = board.locator("tbody").nth(1)

    def labels() -> list[str]:
        return [text.split("\n")[0] for text in retention.locator("tr:not(.role) th").all_inner_texts()]

    before = labels()
    assert len(before) == 3  # the metrics of drift move together
    head = board.get_by_role("columnheader", name="SDFT", exact=True)
    for order in ("descending", "ascending", None):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert labels() == before
    pairs = tab.locator("#comparisons table")
    head = pairs.get_by_role("columnheader", name="Rows")
    head.get_by_role("button").click()
    rows = [int(text) for text in pairs.locator("tbody tr td:last-child").all_inner_texts()]
    assert rows == sorted(rows, reverse=True)
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    head = pairs.get_by_role("columnheader", name="Difference")
    head.get_by_role("button").click()
    keys = pairs.locator("tbody tr td:nth-child(4)").evaluate_all("all => all.map(cell => Number(cell.dataset.sort))")
    assert keys == sorted(keys, reverse=True) and len(set(keys)) > 3


def test_filters_narrow_the_list_and_can_be_cleared(show: Open, demo: Path) -> None:
    tab = show(demo)
    wait_for(tab, "300 rows")
    tab.locator("#rewrites-source").select_option("original kept")
    assert status(tab) == "90 of 300 rows"
    tab.locator("#rewrites-reason").select_option("leak")
    assert status(tab) == "30 of 300 rows"
    assert listed(tab)[:2] == ["chain_sum-0001", "chain_sum-0011"]
    tab.get_by_role("button", name="Clear filters").first.click()
    assert status(tab) == "300 rows"
    tab.get_by_label("Words of the chosen reply, at least").fill("2")
    wait_for(tab, "180 of 300 rows")
    tab.get_by_label("Words of the chosen reply, at least").fill("")
    tab.get_by_label("NLL of the original, at most").fill("1000")
    wait_for(tab, "60 of 300 rows")  # those that were measured
    tab.locator("#rewrites-order").select_option("least likely original first")
    assert len(set(listed(tab))) > 5
    tab.get_by_label("NLL of the original, at most").fill("-1")
    wait_for(tab, "0 of 300 rows")
    assert tab.locator("#rewrites .rows.none").is_visible()


def test_search_looks_into_all_texts(show: Open, demo: Path) -> None:
    tab = show(demo)
    wait_for(tab, "300 rows")
    search = tab.locator("#rewrites-search")
    search.fill("PROBLEM: 123 - 57")
    wait_for(tab, "1 of 300 rows")
    assert listed(tab) == ["chain_sum-0123"]
    search.fill("(.*")  # no pattern, but text
    wait_for(tab, "0 of 300 rows")
    search.press("Escape")
    wait_for(tab, "300 rows")
    assert search.input_value() == ""


def test_a_row_shows_question_texts_and_the_words_that_differ(show: Open, demo: Path) -> None:
    tab = show(demo)
    wait_for(tab, "300 rows")
    tab.locator("#rewrites [role=option]", has_text="chain_sum-0003").click()
    detail = tab.locator("#rewrites .detail")
    assert "State the final answer to the following problem: 3 - 57 =" in detail.inner_text()
    assert detail.locator("ins").all_inner_texts() == ["The answer to the arithmetic problem is", "."]
    assert detail.locator("del").count() == 0
    assert "Second rewrite, taken" in detail.inner_text()
    detail.get_by_text("1 other candidate").click()
    assert "First rewrite, refused: number differs (3 != -54)" in detail.inner_text()
    assert tab.evaluate("location.hash") == "#rewrites/chain_sum-0003"
    detail.get_by_role("button", name="Next").click()
    assert opened(tab) == "chain_sum-0004"


def test_keys_move_through_the_list(show: Open, demo: Path) -> None:
    tab = show(demo)
    wait_for(tab, "300 rows")
    for key, expected in (("j", 1), ("j", 2), ("k", 1)):
        tab.keyboard.press(key)
        assert opened(tab) == f"chain_sum-{expected:04d}"
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "rewrites-search"
    tab.keyboard.type("jk")  # letters here, not keys
    assert opened(tab) == "chain_sum-0001"
    tab.keyboard.press("Escape")
    wait_for(tab, "300 rows")
    assert tab.evaluate("document.activeElement.id") == "rewrites-list"
    tab.keyboard.press("End")
    assert opened(tab) == "chain_sum-0299"
    assert listed(tab)[-1] == "chain_sum-0299"
    row = tab.locator("#rewrites-list").get_attribute("aria-activedescendant")
    assert tab.locator(f"#{row}").is_visible()
    tab.keyboard.press("PageUp")
    assert "chain_sum-0280" < opened(tab) < "chain_sum-0299"
    tab.keyboard.press("Home")
    assert opened(tab) == "chain_sum-0000"


def test_an_address_opens_its_row(show: Open, demo: Path) -> None:
    tab = show(demo, "#rewrites/chain_sum-0211")
    tab.locator("#rewrites .detail h3", has_text="chain_sum-0211").wait_for()
    assert "chain_sum-0211" in listed(tab)
    tab.evaluate("location.hash = '#rewrites/none-such'")
    wait_for(tab, "No row “none-such” in this report; 300 rows")
    tab.evaluate("location.hash = '#replies/reasoning_gym/r7/sft/seed'")
    tab.locator("#replies .detail h3", has_text="r7").wait_for()
    assert tab.locator("#replies-left").input_value() == "1"
    assert tab.locator("#replies-right").input_value() == "0"


def test_replies_of_two_models_stand_side_by_side(show: Open, demo: Path) -> None:
    tab = show(demo)
    wait_for(tab, "40 rows", "replies")
    detail = tab.locator("#replies .detail")
    assert "What is 0 and 1?" in detail.inner_text()
    assert "Reference: 1" in detail.inner_text()
    assert detail.locator("h4").all_inner_texts() == ["Seed: wrong", "SDFT: ok"]
    tab.locator("#replies-outcome").select_option("only the right passes")
    assert status(tab, "replies") == "20 of 40 rows"
    tab.locator("#replies-left").select_option("Vanilla fine-tuning")
    assert status(tab, "replies") == "10 of 40 rows"
    tab.locator("#replies-book").select_option("drift")
    wait_for(tab, "60 rows", "replies")
    tab.locator("#replies-group").select_option("writing")
    assert status(tab, "replies") == "8 of 60 rows"


def test_untrusted_text_does_nothing_in_a_browser(show: Open, tmp_path: Path) -> None:
    page = run_report(RunDir(nasty_run(tmp_path / "run")), Console(quiet=True))
    tab = show(page)
    wait_for(tab, "2 rows")
    tab.wait_for_timeout(300)
    assert tab.locator("#rewrites .detail script, #rewrites .detail img, #rewrites .detail svg").count() == 0
    assert "<script>alert(1)</script>" in tab.locator("#rewrites .detail").inner_text()
    tab.keyboard.press("j")
    assert "[U+202E]abc[U+2066]" in tab.locator("#rewrites .detail").inner_text()
    assert tab.locator("svg[onload], [onerror], [onfocus], [onmouseover]").count() == 0


def test_the_policy_stops_what_would_slip_through(chromium: Browser, demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    bad = "<script>document.title = 'run'</script><script src='e.js'></script>"
    bad += "<img src=x onerror=\"document.title = 'run'\">"
    page.write_text(demo.read_text(encoding="utf-8").replace("</main>", f"{bad}</main>"), encoding="utf-8")
    (tmp_path / "e.js").write_text("document.title = 'run'")
    tab = chromium.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_timeout(300)
    assert tab.title() == "demo · sdft report"
    tab.close()


def test_replies_of_a_megabyte_are_shown_in_part(show: Open, tmp_path: Path) -> None:
    folder = demo_run(tmp_path / "run", rows=0)
    long = "spam </div><b> " * 70_000
    write_jsonl(folder / "select" / "choices.jsonl", [choice(9, original=long, reply=long + "the end")])
    started = time.monotonic()
    tab = show(run_report(RunDir(folder), Console(quiet=True)))
    wait_for(tab, "1 row")
    text = tab.locator("#rewrites .detail").inner_text()
    assert "characters left out" in text and "the end" in text
    assert len(text) < 60_000
    assert time.monotonic() - started < 60


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 50,000 rows: they stand beside the page."""
    folder = demo_run(tmp_path_factory.mktemp("browser") / "large", rows=0)
    write_data(folder, 50_000)
    write_selection(folder, 50_000)
    return run_report(RunDir(folder), Console(quiet=True))


@pytest.mark.slow
def test_fifty_thousand_rows_are_loaded_in_pieces(show: Open, large: Path) -> None:
    pieces = list((large.parent / "rows").iterdir())
    assert len(pieces) > 20
    assert large.stat().st_size < IN_PAGE
    tab = show(large)
    wait_for(tab, "50,000 rows")
    scripts = "performance.getEntriesByType('resource').length"
    assert tab.evaluate(scripts) <= 2  # the index, and the first row's piece
    assert len(listed(tab)) < 40
    tab.locator("#rewrites-list").focus()
    tab.keyboard.press("End")
    tab.locator("#rewrites .detail h3", has_text="chain_sum-49999").wait_for()
    assert tab.evaluate(scripts) <= 3
    tab.locator("#rewrites-reason").select_option("leak")
    wait_for(tab, "5,000 of 50,000 rows")
    tab.locator("#rewrites-search").fill("problem: 43,")
    wait_for(tab, "0 of 50,000 rows")
    tab.locator("#rewrites-search").fill("problem: 43211 -")
    wait_for(tab, "1 of 50,000 rows")
    assert listed(tab) == ["chain_sum-43211"]


def test_pieces_that_are_not_there_are_named(chromium: Browser, tmp_path: Path) -> None:
    folder = demo_run(tmp_path / "run", rows=0)
    text = "word " * 4000
    write_jsonl(folder / "select" / "choices.jsonl", [choice(i, original=text, reply=text) for i in range(60)])
    page = run_report(RunDir(folder), Console(quiet=True))
    for piece in (page.parent / "rows").iterdir():
        piece.unlink()
    tab = chromium.new_page()
    tab.goto(page.as_uri())
    tab.locator("#rewrites .status", has_text="rows/rewrites-index.js is missing").wait_for()
    tab.close()


def sound(tab: Page) -> None:
    """Nothing is wider than the window but what scrolls by itself, and axe-core finds nothing."""
    from axe_core_python.sync_playwright import Axe

    wide = (
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert tab.evaluate(wide) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(tab)["violations"]
    told = [(v["id"], v["impact"], [node["html"][:120] for node in v["nodes"]][:3]) for v in found]
    assert told == []


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_accessible(show: Open, demo: Path, width: int, scheme: str) -> None:
    tab = show(demo, color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    wait_for(tab, "300 rows")
    wait_for(tab, "40 rows", "replies")
    sound(tab)


def test_the_page_that_compares_runs_sorts_fits_and_is_accessible(show: Open, tmp_path: Path) -> None:
    runs = [variant(tmp_path / name, name, epochs, 0.1 * epochs) for name, epochs in (("short", 1), ("long", 4))]
    tab = show(compare_runs([str(run) for run in runs], []))
    tab.set_viewport_size({"width": 390, "height": 900})
    sound(tab)
    head = tab.locator("#settings").get_by_role("columnheader", name="Setting")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
