"""The report of a run, from its files alone: HTML to look at, markdown for a pull request, JSON for programs."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sdft.console import Console, duration
from sdft.report.browse import as_script, write_books
from sdft.report.facts import gather
from sdft.report.markdown import render_markdown
from sdft.report.page import render_html
from sdft.report.source import read_run
from sdft.rundir import RunDir, atomic_write


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """The three forms of one report, as text."""

    html: str
    markdown: str
    json: str


def build_report(run_folder: Path, beside: Path | None = None) -> ReportFiles:
    """Make a run folder's report. The same files give the same report.

    The rows that do not fit into the page are written to the folder `beside`, or left out where none is given. Parts
    of the run that are missing or cannot be read are named in the report. Raises RunError where there is no such
    folder.
    """
    run = read_run(run_folder)
    with tempfile.TemporaryDirectory() as made:
        parts = Path(made)  # on the disk: all rows together may be larger than the memory

        def load(name: str) -> str:
            return (parts / name).read_text(encoding="utf-8")

        books = write_books(run, lambda name, text: _write(parts / name, text))
        large = [name for book in books if not book.in_page for name in book.parts]
        if beside is None:
            books = [book for book in books if book.in_page]
        elif large:
            beside.mkdir(parents=True)
            for name in large:
                _write(beside / f"{name}.js", as_script(name, load(name)))
        report = gather(run)
        return ReportFiles(
            html=render_html(run, report, books, load),
            markdown=render_markdown(report),
            json=report.model_dump_json(indent=2) + "\n",
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def run_report(run: RunDir, console: Console) -> Path:
    """Write `report/report.html`, `report.md` and `report.json`, and `report/rows/` where the rows are many.

    Returns the path of the HTML file.
    """
    started = time.monotonic()
    page = run / "report" / "report.html"
    rows, made = page.with_name("rows"), page.with_name(".rows.part")
    shutil.rmtree(made, ignore_errors=True)
    files = build_report(run.path, made)
    for path, text in (
        (page, files.html),
        (page.with_suffix(".md"), files.markdown),
        (page.with_suffix(".json"), files.json),
    ):
        with atomic_write(path) as file:
            file.write(text)
    shutil.rmtree(rows, ignore_errors=True)
    if made.is_dir():
        made.rename(rows)
    console.say(f"report: {page} ({duration(time.monotonic() - started)})")
    return page
