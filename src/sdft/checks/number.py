"""The check `number`."""

from __future__ import annotations

import re
from typing import Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

_NUMBER = re.compile(r"-?\d+(?:[,\s]\d+)*(?:\.\d+)?")


class Number(Check):
    """`So they pay 1,200 dollars.` agrees with `The answer is 1200.`: the last number is the same integer.

    As in sail-sg/sdft: digits may be grouped by commas or white space (so `1,35` reads as 135), `11.00` is 11,
    and 2.5 counts as no number. There two texts without a number agree; here they do not.
    """

    name: Literal["number"] = "number"

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `number_differs`, or `no_number` where the reply, the reference or both have none."""
        expected, found = last_integer(example.reference), last_integer(text)
        if expected is None and found is None:
            return fail("no_number", "neither the reply nor the reference ends on a whole number")
        if expected is None:
            return fail("no_number", "the reference has no whole number at its end")
        if found is None:
            return fail("no_number", f"none for {expected}"[:80])
        return PASS if found == expected else fail("number_differs", f"{found} for {expected}"[:80])


def last_integer(text: str) -> int | None:
    """The last number in `text`; None where there is none or where it has a fraction."""
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    whole, _, fraction = numbers[-1].replace(",", "").replace(" ", "").partition(".")
    try:
        # Digits on two lines, and digits without end, are numbers to the pattern but not to int().
        return int(whole) if int(fraction or "0") == 0 else None
    except ValueError:
        return None
