"""Numbers as people read them: percent and points, nats, words."""

from __future__ import annotations

import math
import typing
from typing import Literal

from sdft.benchmarks import AnyBenchmark, Benchmark
from sdft.records import Score

Unit = Literal["percent", "nats", "words", "number"]

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"
CONFIDENCE = f"95{SPACE}% interval"


def unit_of(score: Score) -> Unit:
    """The unit of a metric: by its name, else as its benchmark declares it, else percent for rates alone."""
    parts = score.metric.lower().split("_")
    if "kl" in parts:
        return "nats"
    if "words" in parts:
        return "words"
    if score.metric.startswith("pass@"):  # its k is the recipe's to choose
        return "percent"
    declared = _declared(score.benchmark, score.metric)
    percent = score.kind == "rate" if declared is None else declared
    return "percent" if percent else "number"


def _declared(benchmark: str, metric: str) -> bool | None:
    """Whether a benchmark of this package shows the metric times 100; None for a metric it does not know."""
    kind = _kind(benchmark)
    return kind.METRICS[metric].percent if kind and metric in kind.METRICS else None


def is_keyword(benchmark: str, metric: str) -> bool:
    """Whether a benchmark of this package looks for phrases to measure the metric."""
    kind = _kind(benchmark)
    return kind is not None and metric in kind.KEYWORDS


def _kind(benchmark: str) -> type[Benchmark] | None:
    union = typing.get_args(AnyBenchmark)[0]
    kinds: tuple[type[Benchmark], ...] = typing.get_args(union) or (union,)
    return next((kind for kind in kinds if kind.model_fields["name"].default == benchmark), None)


def scale(unit: Unit) -> float:
    """What a stored value is multiplied with to be shown."""
    return 100.0 if unit == "percent" else 1.0


def number(value: float | None, unit: Unit) -> str:
    """The bare number: `52.0`, `0.203`, `56`."""
    if value is None or not math.isfinite(value):
        return ABSENT
    shown = value * scale(unit)
    if unit == "percent":
        text = f"{shown:.1f}"
    elif unit == "nats":
        text = f"{shown:.3f}"
    elif unit == "words":
        text = f"{shown:,.0f}" if abs(shown) >= 20 else f"{shown:.1f}"
    else:
        text = f"{shown:.3g}" if abs(shown) < 1000 else f"{shown:,.0f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # no "minus nothing"
    return text.replace("-", MINUS)


def signed(value: float | None, unit: Unit) -> str:
    """The bare number with its sign: `+40.0`, `−0.141`."""
    text = number(value, unit)
    return text if text == ABSENT or text.startswith(MINUS) or not text.strip("0.,") else f"+{text}"


def quantity(value: float | None, unit: Unit) -> str:
    """The number with its unit: `52.0 %`, `0.203 nats`, `56 words`."""
    after = {"percent": f"{SPACE}%", "nats": f"{SPACE}nats", "words": f"{SPACE}words", "number": ""}[unit]
    text = number(value, unit)
    return text if text == ABSENT else text + after


def difference(value: float | None, unit: Unit) -> str:
    """A difference with its unit: `+40.0 points`, `−48 words`."""
    after = {"percent": f"{SPACE}points", "nats": f"{SPACE}nats", "words": f"{SPACE}words", "number": ""}[unit]
    text = signed(value, unit)
    return text if text == ABSENT else text + after


def interval(low: float, high: float, unit: Unit) -> str:
    """An interval of values: `43.2 to 60.6`."""
    return f"{number(low, unit)} to {number(high, unit)}"


def signed_interval(low: float, high: float, unit: Unit) -> str:
    """An interval of differences: `+30.0 to +49.0`."""
    return f"{signed(low, unit)} to {signed(high, unit)}"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """A share of a count in percent: `70 %`, with a decimal where it is small."""
    if not whole:
        return ABSENT
    value = 100 * part / whole
    return f"{value:.1f}{SPACE}%" if 0 < value < 10 or 99 < value < 100 else f"{value:.0f}{SPACE}%"


def p_value(value: float | None) -> str:
    """A p-value: `0.034`, `< 0.001`."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def size(value: float | None) -> str:
    """Bytes as people say them: `1.4 GiB`."""
    if value is None or not math.isfinite(value):
        return ABSENT
    for name, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:.1f}{SPACE}{name}"
    return f"{value:.0f}{SPACE}B"
