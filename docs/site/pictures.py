"""Take the pictures of the docs from the demo's report, where that is whole; else those that stand there stay.

python docs/site/pictures.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
RUN = ROOT / "runs/demo"
ROW = "chain_sum-1001"
"""Two of its candidates have another number, the third one is taken."""


def take(report: Path, chromium: str, folder: Path) -> None:
    """The top of the report, and the rewrite browser with a row that had several candidates."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1500}, color_scheme="light")
        page.goto(report.as_uri())
        page.screenshot(path=folder / "demo-report.png")
        page.goto(f"{report.as_uri()}#rewrites/{ROW}")
        section = page.locator("#rewrites")
        page.wait_for_timeout(1000)
        section.screenshot(path=folder / "demo-rewrites.png")
        browser.close()


def main() -> None:
    """Take them, or say why not."""
    report, chromium = RUN / "report/report.html", shutil.which("chromium")
    scores = RUN / "eval/sdft/drift/scores.json"
    whole = report.is_file() and scores.is_file() and report.stat().st_mtime > scores.stat().st_mtime
    if not whole or chromium is None:
        print(
            f"pictures: those in {IMAGES} stay: " + ("no chromium here" if whole else "no report of `make demo` here")
        )
        return
    take(report, chromium, IMAGES)
    print(f"pictures: taken from {report}")


if __name__ == "__main__":
    main()
