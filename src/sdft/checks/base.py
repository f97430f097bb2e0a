"""What every check is: a frozen settings object that judges one reply to one example."""

from __future__ import annotations

from sdft.records import Example, Settings, Verdict

PASS = Verdict(ok=True, reason="ok")


def fail(reason: str, detail: str = "") -> Verdict:
    """A refusal with its reason slug and, where it helps, a short detail."""
    return Verdict(ok=False, reason=reason, detail=detail)


class Check(Settings):
    """A pure judgement of a reply. A subclass adds `name: Literal[...]`, its settings, and `__call__`.

    Subclasses are listed in the union of `sdft.checks`; a test fails for a module that is missing there.
    """

    def __call__(self, example: Example, text: str) -> Verdict:
        """Judge `text` as a reply to `example`, whose `reference` is the dataset's own reply."""
        raise NotImplementedError(f"{type(self).__name__} must say how it judges a reply")
