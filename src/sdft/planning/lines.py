"""The lines of a plan, and the sum below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdft.console import duration
from sdft.errors import counted


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a run will do or need."""

    kind: str
    """What it is about: a stage, `memory`, `disk` …"""
    text: str
    seconds: float | None = 0.0
    """None: it takes time, and how much is not known."""
    loads: int = 0
    """How often a model is loaded for it, which is not in `seconds`."""
    cost: tuple[float, float] | None = (0.0, 0.0)
    """About, and at most; None: it is paid for, and the prices are not known."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def about(seconds: float | None, each: str = "") -> str:
    """As it stands behind the tokens of a line; nothing where the time is not known."""
    if not seconds:
        return ""
    return f"; about {duration(seconds)}{each}" if seconds >= 1 else f"; under 1 s{each}"


def money(cost: float) -> str:
    """As engines write it in a run's notes."""
    return f"{cost:.2f}" if cost >= 1 else f"{cost:.2g}"


def loading(lines: Sequence[Line], each: float) -> Iterator[Line]:
    """The models that the work in these lines loads, one after the other, at so many seconds each."""
    times = sum(line.loads for line in lines)
    if times:
        yield Line("loading", f"of models, {counted(times, 'time')}{about(times * each)}", times * each)


def total(lines: Sequence[Line]) -> Line:
    """Time and cost of all of them together."""
    by_kind: dict[str, float] = {}
    for line in lines:
        if line.seconds:
            by_kind[line.kind] = by_kind.get(line.kind, 0.0) + line.seconds
    text = "time is not estimated"
    if by_kind:
        parts = [f"{kind} {duration(seconds)}" for kind, seconds in by_kind.items() if seconds >= 1]
        text = f"about {duration(max(1, sum(by_kind.values())))}"
        text += f", of which {', '.join(parts)}" if len(parts) > 1 else ""
        untimed = list(dict.fromkeys(line.kind for line in lines if line.seconds is None))
        text += f"; not estimated, and on top: {', '.join(untimed)}" if untimed else ""
    likely, most = (sum(line.cost[n] for line in lines if line.cost) for n in (0, 1))
    if most:
        text += (
            f"; cost about {money(likely)}, at most {money(most)}" if likely < most else f"; cost at most {money(most)}"
        )
    unpriced = list(dict.fromkeys(line.kind for line in lines if line.cost is None))
    if unpriced:
        text += f"; {'without' if most else 'cost is not known without'} the prices of {', '.join(unpriced)}"
    return Line("total", text)
