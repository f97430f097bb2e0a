"""Untrusted text made fit to be shown: hidden characters made visible, long texts shortened, words compared."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from sdft.visible import visible

LONGEST = 2400
"""Characters of one text that a page shows in full."""
MOST_MATCHES = 40_000
"""Pairs of equal words that a comparison of two texts looks at."""

Kind = Literal["same", "removed", "added"]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text as a page shows it. `note` says what was left out, or is empty."""

    text: str
    note: str = ""


def excerpt(text: str, longest: int = LONGEST) -> Excerpt:
    """A text of any length as a page shows it: beginning and end of long ones, with a note of the full length."""
    if len(text) <= longest:
        return Excerpt(visible(text))
    head, tail = longest * 2 // 3, longest // 6
    left_out = len(text) - head - tail
    shown = f"{visible(text[:head])}\n[… {left_out:,} characters left out …]\n{visible(text[-tail:])}"
    return Excerpt(shown, f"shortened: {len(text):,} characters, {len(text.split()):,} words in all")


def brief(text: str, longest: int = 160) -> str:
    """A name or detail on one line, cut where it is over-long."""
    flat = " ".join(visible(text[: 4 * longest]).split())
    return flat if len(flat) <= longest and len(text) <= 4 * longest else flat[: longest - 1] + "…"


def word_diff(old: str, new: str) -> list[tuple[Kind, str]]:
    """`new` against `old` by words and the spaces between them: runs that are the same, removed, or added.

    Texts that repeat themselves so much that a comparison would take seconds are one removed and one added run.
    """
    before, after = re.findall(r"\s+|\w+|[^\w\s]", old), re.findall(r"\s+|\w+|[^\w\s]", new)
    seen = Counter(token for token in before if not token.isspace())
    if sum(seen[token] for token in after) > MOST_MATCHES:
        return [("removed", old), ("added", new)]
    runs: list[tuple[Kind, str]] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(str.isspace, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            runs.append(("same", "".join(before[a:b])))
            continue
        if b > a:
            runs.append(("removed", "".join(before[a:b])))
        if d > c:
            runs.append(("added", "".join(after[c:d])))
    return runs


def markdown(text: str) -> str:
    """A plain text that markdown leaves as it is, fit for a table cell."""
    flat = brief(text, 1000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~#]|(?<!\w)_|_(?!\w))", r"\\\1", flat)
