"""The check `json_keys`."""

from __future__ import annotations

import json
from typing import Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict


class JsonKeys(Check):
    """`{"capital": "Oslo", "country": "Norway"}` has the keys of `{"country": "Norway", "capital": "Oslo"}`.

    Values are not compared, and the order of the keys does not matter. Text around the object is refused.
    """

    name: Literal["json_keys"] = "json_keys"
    more: bool = False
    """Let the reply have further keys."""

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `no_object`, `keys_missing` or `keys_more`."""
        expected, found = keys(example.reference), keys(text)
        if found is None or expected is None:
            return fail("no_object", "the reply" if found is None else "the reference")
        if expected - found:
            return fail("keys_missing", ", ".join(sorted(expected - found))[:80])
        if found - expected and not self.more:
            return fail("keys_more", ", ".join(sorted(found - expected))[:80])
        return PASS


def keys(text: str) -> set[str] | None:
    """The keys of a JSON object; None where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return set(value) if isinstance(value, dict) else None
