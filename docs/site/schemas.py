"""Write the pages of the report's data from their classes: `python docs/site/schemas.py`."""

from __future__ import annotations

from pathlib import Path

from sdft.report import compare, schema

DOCS = Path(__file__).parents[1]

COMPARISON = """`comparison.json`: what `sdft report RUN RUN …` shows, in a form that other programs can rely on.

A run's own numbers are a [Report](report.json.schema.md); `Difference` stands there, too."""


def pages() -> dict[str, str]:
    """File name to text."""
    return {
        "report.json.schema.md": schema.document(),
        "comparison.json.schema.md": schema.document(compare.Comparison, COMPARISON, told=schema.Report),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
