"""The check `leak`."""

from __future__ import annotations

from typing import Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

PHRASES = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
"""A rewrite that holds one of them, in any case, talks about the prompt it was made from."""

OPENING = "Your turn"
"""A rewrite that starts with it goes on with the prompt instead of answering."""


class Leak(Check):
    """Refuses `Based on the Reference Answer, 40 degrees Celsius is …`: a comment on the prompt, not a reply.

    The phrases are those of sail-sg/sdft.
    """

    name: Literal["leak"] = "leak"

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `leak`, the phrase as detail."""
        text = text.strip()
        if text.startswith(OPENING):
            return fail("leak", OPENING)
        folded = text.lower()
        phrase = next((phrase for phrase in PHRASES if phrase in folded), None)
        return fail("leak", phrase) if phrase else PASS
