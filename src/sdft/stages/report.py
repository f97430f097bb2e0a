"""The report of a run, from its files alone: HTML to look at, markdown for a pull request, JSON for programs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sdft.console import Console, duration
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


def build_report(run_folder: Path) -> ReportFiles:
    """Make a run folder's report. The same files give the same report.

    Parts of the run that are missing or cannot be read are named in the report. Raises RunError where there is
    no such folder.
    """
    run = read_run(run_folder)
    report = gather(run)
    return ReportFiles(
        html=render_html(run, report),
        markdown=render_markdown(report),
        json=report.model_dump_json(indent=2) + "\n",
    )


def run_report(run: RunDir, console: Console) -> Path:
    """Write `report/report.html`, `report.md` and `report.json`; returns the path of the HTML file."""
    started = time.monotonic()
    files = build_report(run.path)
    page = run / "report" / "report.html"
    for path, text in (
        (page, files.html),
        (page.with_suffix(".md"), files.markdown),
        (page.with_suffix(".json"), files.json),
    ):
        with atomic_write(path) as file:
            file.write(text)
    console.say(f"report: {page} ({duration(time.monotonic() - started)})")
    return page
