"""The check `copies`."""

from __future__ import annotations

from typing import Literal

from sdft.checks.base import PASS, Check
from sdft.records import Example, Verdict


class Copies(Check):
    """`57` for the reference `57`: the rewrite passes, but is counted as `identical`.

    Training on it is training on the original, so a large share of them says that distilling changed little.
    """

    name: Literal["copies"] = "copies"

    def __call__(self, example: Example, text: str) -> Verdict:
        """Always passes; the reason is `identical` where reply and reference are the same but for outer space."""
        if text.strip() == example.reference.strip():
            return Verdict(ok=True, reason="identical")
        return PASS
