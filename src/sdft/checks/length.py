"""The check `length`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict


class Length(Check):
    """`Yes.` for a reference of 40 words is too short; 900 words for it are too long.

    Words are what white space separates; an empty reference counts as one word.
    """

    name: Literal["length"] = "length"
    min_ratio: float | None = Field(default=0.2, ge=0)
    """Words of the reply over words of the reference, at least; null: any."""
    max_ratio: float | None = Field(default=20.0, gt=0)
    """The same, at most; null: any."""

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if self.min_ratio is not None and self.max_ratio is not None and self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio {self.min_ratio} is above max_ratio {self.max_ratio}; nothing could pass")
        return self

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `too_short` or `too_long`."""
        words, expected = len(text.split()), max(1, len(example.reference.split()))
        detail = f"{words} words for {expected}"
        if self.min_ratio is not None and words < self.min_ratio * expected:
            return fail("too_short", detail)
        if self.max_ratio is not None and words > self.max_ratio * expected:
            return fail("too_long", detail)
        return PASS
