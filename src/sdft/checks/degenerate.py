"""The check `degenerate`."""

from __future__ import annotations

import operator
import re
from typing import Literal

from pydantic import Field

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

_WORD = re.compile(r"\w+")
_CHARACTER_RUN = re.compile(r"([^\s\-=_*#~.])\1{39,}")
"""One character forty times over, such as the `!!!!` of a model whose numbers overflowed; not a drawn rule."""


class Degenerate(Check):
    """`I am a model. I am a model. I am a model. I am a model.` is refused: the model went round in circles.

    A loop is one phrase several times in a row. Case and punctuation do not count.
    """

    name: Literal["degenerate"] = "degenerate"
    max_phrase_words: int = Field(default=40, ge=1)
    """The longest phrase that is looked for."""
    repeats: int = Field(default=4, ge=2)
    """So many times in a row make a loop …"""
    min_loop_words: int = Field(default=12, ge=2)
    """… where together they are at least so many words, so that `no, no, no, no` may stand."""

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `empty` or `loop`, the repeated phrase as detail."""
        if not text.strip():
            return fail("empty")
        run = _CHARACTER_RUN.search(text)
        if run:
            return fail("loop", run[1])
        phrase = self._loop(_WORD.findall(text.lower()))
        return fail("loop", " ".join(phrase)[:80]) if phrase else PASS

    def _loop(self, words: list[str]) -> list[str]:
        """The shortest phrase that loops, or nothing."""
        # In a loop each word but those of the first phrase equals the one before it by the phrase's size. So four words
        # in a row must come back as often, which few texts do; and ones and zeros as bytes let C do the searching.
        fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
        repeated = len(fours) - len(set(fours)) + 3
        for size in range(1, self.max_phrase_words + 1):
            needed = max(size * self.repeats, self.min_loop_words) - size
            if needed > repeated:
                continue
            same = bytes(map(operator.eq, words[size:], words))
            start = same.find(b"\x01" * needed)
            if start >= 0:
                return words[start : start + size]
        return []
