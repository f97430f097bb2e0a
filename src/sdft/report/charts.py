"""Charts as inline SVG: sharp at any size, coloured by the page's own style sheet, so light and dark both work.

Every function gives one `<svg>` as text; all labels are escaped here. A chart is drawn in its own units (width
460) and scales with the page. `tone` and `series` are names of CSS colours: `seed`, `a`, `b`, `c` …
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as _escape

from sdft.visible import visible

WIDTH = 460.0


@dataclass(frozen=True, slots=True)
class Point:
    """A labelled point with error bars; an interval is (low, high) or None."""

    label: str
    tone: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar. `note` stands behind its end."""

    label: str
    tone: str
    value: float
    note: str


@dataclass(frozen=True, slots=True)
class Series:
    """A named line, or the counts of one histogram."""

    label: str
    tone: str
    values: Sequence[tuple[float, float]]
    """(x, y) of a line; (bin, count) of a histogram."""


@dataclass(frozen=True, slots=True)
class Box:
    """The spread of many values: minimum, quartiles, maximum, mean, and the values to show as dots."""

    label: str
    tone: str
    minimum: float
    quartiles: tuple[float, float, float]
    maximum: float
    mean: float
    dots: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """Many values, to be shown as one histogram among others; `note` is their mean as text."""

    label: str
    tone: str
    values: Sequence[float]
    mean: float
    interval: tuple[float, float]
    note: str


@dataclass(frozen=True, slots=True)
class Track:
    """A value with its interval at each of some named places; None where there is none."""

    label: str
    tone: str
    values: Sequence[tuple[float, float, float] | None]
    """(value, low, high) at each place."""


class Canvas:
    """Collects SVG elements."""

    def __init__(self, title: str, height: float) -> None:
        self.title, self.height = title, height
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.parts.append(f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def rect(self, x: float, y: float, width: float, height: float, style: str, title: str = "") -> None:
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self.parts.append(f'<rect class="{style}" {box} rx="1.5">{_title(title)}</rect>')

    def circle(self, x: float, y: float, radius: float, style: str, title: str = "") -> None:
        self.parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{_title(title)}</circle>')

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        mark = f' class="{style}"' if style else ""
        self.parts.append(f'<text{mark} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def path(self, points: Sequence[tuple[float, float]], style: str) -> None:
        steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{style}" d="M{steps}"/>')

    def svg(self) -> str:
        head = f'<svg viewBox="0 0 {WIDTH:.0f} {self.height:.0f}" role="img" aria-label="{escape(self.title)}">'
        return head + "".join(self.parts) + "</svg>"


def escape(text: str) -> str:
    """Text as it may stand in markup and in attributes."""
    return _escape(visible(text))


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low to high, about `count` of them."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's number, short: `0.05`, `20`, `1.5k`."""
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from data to drawing units."""

    marks: list[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def frontier(points: Sequence[Point]) -> list[tuple[float, float]]:
    """The points that no other beats in both directions, left and up, from left to right."""
    edge: list[tuple[float, float]] = []
    for x, y in sorted(((p.x, p.y) for p in points), key=lambda place: (place[0], -place[1])):
        if not edge or y > edge[-1][1]:
            edge.append((x, y))
    return edge


def scatter(
    title: str, points: Sequence[Point], x_label: str, y_label: str, edge: Sequence[tuple[float, float]] = ()
) -> str:
    """Labelled points with error bars; the origin is always in the picture. `edge` is a line through some of them."""
    canvas = Canvas(title, 330)
    xs = [v for p in points for v in (p.x, *(p.x_interval or ()))]
    ys = [v for p in points for v in (p.y, *(p.y_interval or ()))]
    x = Axis(ticks(min(0.0, *xs), max(0.0, *xs) * 1.08), 52, WIDTH - 16)
    y = Axis(ticks(min(0.0, *ys), max(0.0, *ys) * 1.05), 330 - 52, 30)
    _frame(canvas, x, y)
    canvas.line(x.start, y(0), x.end, y(0), "zero")
    canvas.line(x(0), y.start, x(0), y.end, "zero")
    canvas.text((x.start + x.end) / 2, 322, x_label, "axis", "middle")
    canvas.text(6, 16, y_label, "axis")
    if len(edge) > 1:
        canvas.path([(x(a), y(b)) for a, b in edge], "edge")
    for p in points:
        if p.x_interval:
            canvas.line(x(p.x_interval[0]), y(p.y), x(p.x_interval[1]), y(p.y), f"error {p.tone}")
        if p.y_interval:
            canvas.line(x(p.x), y(p.y_interval[0]), x(p.x), y(p.y_interval[1]), f"error {p.tone}")
    for p in points:
        canvas.circle(x(p.x), y(p.y), 6, f"dot {p.tone}", p.label)
    for p, (at, height, anchor) in zip(points, _places(points, x, y), strict=True):
        canvas.text(at, height, p.label, f"label {p.tone}", anchor)
    return canvas.svg()


def _places(points: Sequence[Point], x: Axis, y: Axis) -> list[tuple[float, float, str]]:
    """Where each point's label stands: beside the point, off its error bars and off the labels before it."""
    taken: list[tuple[float, float, float, float]] = [(x(p.x) - 7, y(p.y) - 7, x(p.x) + 7, y(p.y) + 7) for p in points]
    places: list[tuple[float, float, str]] = []
    for p in points:
        width = 8.0 * len(p.label)
        options: list[tuple[bool, bool, int, int, tuple[float, float, float, float], float]] = []
        for dy in (-10.0, 20.0, -24.0, 34.0, -38.0, 48.0):
            for side in (1, -1):
                left = x(p.x) + 9 if side > 0 else x(p.x) - 9 - width
                box = (left, y(p.y) + dy - 12, left + width, y(p.y) + dy + 3)
                inside = box[0] > 4 and box[2] < WIDTH - 2 and box[1] > y.end - 12 and box[3] < y.start + 4
                free = not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
                options.append((not (inside and free), not inside, len(options), side, box, y(p.y) + dy))
        *_, side, box, height = min(options)
        taken.append(box)
        places.append((x(p.x) + 9 * side, height, "start" if side > 0 else "end"))
    return places


def _frame(canvas: Canvas, x: Axis, y: Axis) -> None:
    for mark in y.marks:
        canvas.line(x.start, y(mark), x.end, y(mark), "grid")
        canvas.text(x.start - 8, y(mark) + 4, tick_label(mark), "tick", "end")
    for mark in x.marks:
        canvas.line(x(mark), y.start, x(mark), y.start + 4, "grid")
        canvas.text(x(mark), y.start + 18, tick_label(mark), "tick", "middle")


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from one base line, each with its label to the left and its note behind the end."""
    step, left = 27.0, 158.0
    canvas = Canvas(title, step * len(rows) + 6)
    room = WIDTH - left - 12 - 7.2 * max((len(row.note) for row in rows), default=0)
    most = max((row.value for row in rows), default=0) or 1.0
    for index, row in enumerate(rows):
        top = index * step + 4
        width = row.value / most * room
        canvas.text(left - 9, top + 14, _short(row.label, 22), "tick strong", "end")
        canvas.rect(left, top, max(width, 1.5), 19, f"bar {row.tone}", f"{row.label}: {row.note}")
        canvas.text(left + max(width, 1.5) + 7, top + 14, row.note, "tick")
    return canvas.svg()


def grouped_bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], x_label: str) -> str:
    """One cluster of thin bars for each group, on one scale."""
    thin, gap, left = 11.0, 11.0, 158.0
    height = sum(thin * len(rows) + gap for _, rows in groups) + 46
    canvas = Canvas(title, height)
    x = Axis(ticks(0, max((row.value for _, rows in groups for row in rows), default=0) or 1.0), left, WIDTH - 20)
    for mark in x.marks:
        canvas.line(x(mark), 2, x(mark), height - 42, "grid")
        canvas.text(x(mark), height - 27, tick_label(mark), "tick", "middle")
    top = 4.0
    for name, rows in groups:
        canvas.text(left - 9, top + thin * len(rows) / 2 + 4, _short(name, 22), "tick strong", "end")
        for row in rows:
            canvas.rect(left, top, x(row.value) - left, thin - 2, f"bar {row.tone}", f"{name}, {row.label}: {row.note}")
            top += thin
        top += gap
    canvas.text((left + WIDTH - 20) / 2, height - 6, x_label, "axis", "middle")
    return canvas.svg()


def histograms(title: str, bins: Sequence[str], series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Histograms side by side within each bin. Bins may be of unequal width; each is named."""
    canvas = Canvas(title, 290)
    most = max((count for s in series for _, count in s.values), default=0) or 1.0
    y = Axis(ticks(0, most), 290 - 52, 30)
    left, right = 52.0, WIDTH - 10
    for mark in y.marks:
        canvas.line(left, y(mark), right, y(mark), "grid")
        canvas.text(left - 8, y(mark) + 4, tick_label(mark), "tick", "end")
    step = (right - left) / max(len(bins), 1)
    thin = step * 0.84 / max(len(series), 1)
    every = math.ceil(max((len(name) for name in bins), default=1) * 7.5 / step)
    for index, name in enumerate(bins):
        if index % every == 0:
            canvas.text(left + (index + 0.5) * step, y.start + 18, name, "tick", "middle")
    for place, s in enumerate(series):
        for bin_index, value in s.values:
            index = int(bin_index)
            at = left + index * step + step * 0.08 + place * thin
            what = f"{s.label}: {value:,.0f} replies of {bins[index]} words"
            canvas.rect(at, y(value), thin - 0.6, y.start - y(value), f"bar {s.tone}", what)
    canvas.text((left + right) / 2, 282, x_label, "axis", "middle")
    canvas.text(6, 16, y_label, "axis")
    return canvas.svg()


def lines(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over a common x axis; the y axis starts at 0."""
    canvas = Canvas(title, 290)
    xs = [x for s in series for x, _ in s.values]
    ys = [y for s in series for _, y in s.values]
    x = Axis(ticks(0, max(xs, default=1.0)), 52, WIDTH - 16)
    y = Axis(ticks(0, max(ys, default=1.0)), 290 - 52, 30)
    _frame(canvas, x, y)
    for s in series:
        points = [(x(a), y(b)) for a, b in s.values]
        if len(points) == 1:
            canvas.circle(*points[0], 3, f"dot {s.tone}", s.label)
        elif points:
            canvas.path(points, f"curve {s.tone}")
    canvas.text((x.start + x.end) / 2, 282, x_label, "axis", "middle")
    canvas.text(6, 16, y_label, "axis")
    return canvas.svg()


def overlaid(title: str, samples: Sequence[Sample], x_label: str, y_label: str, bins: int = 30) -> str:
    """Histograms over one another on one scale, each with its mean as a line in the band of its interval."""
    canvas = Canvas(title, 290)
    values = [value for sample in samples for value in sample.values]
    x = Axis(ticks(min(values, default=0.0), max(values, default=1.0), 7), 52, WIDTH - 16)
    low, width = x.marks[0], (x.marks[-1] - x.marks[0]) / bins
    counts = [Counter(min(bins - 1, int((value - low) / width)) for value in sample.values) for sample in samples]
    y = Axis(ticks(0, max((n for counted in counts for n in counted.values()), default=1)), 290 - 52, 64)
    _frame(canvas, x, y)
    for sample, counted in zip(samples, counts, strict=True):
        for index, n in sorted(counted.items()):
            left, right = x(low + index * width), x(low + (index + 1) * width)
            what = f"{sample.label}: {n:,} from {low + index * width:.3g} to {low + (index + 1) * width:.3g}"
            canvas.rect(left, y(n), right - left - 0.6, y.start - y(n), f"bar over {sample.tone}", what)
    for place, sample in enumerate(samples):
        at, height = x(sample.mean), 36.0 + 15 * place
        start, end = (x(min(max(value, low), x.marks[-1])) for value in sample.interval)
        canvas.rect(start, height + 4, end - start, y.start - height - 4, f"band {sample.tone}")
        canvas.line(at, height + 4, at, y.start, f"error {sample.tone}")
        anchor = "end" if at > WIDTH * 0.7 else "start" if at < WIDTH * 0.3 else "middle"
        canvas.text(at, height, sample.note, f"label {sample.tone}", anchor)
    canvas.text((x.start + x.end) / 2, 282, x_label, "axis", "middle")
    canvas.text(6, 16, y_label, "axis")
    return canvas.svg()


def tracks(title: str, places: Sequence[str], series: Sequence[Track], x_label: str, y_label: str) -> str:
    """Values with their intervals at named places, evenly spaced in the order given, joined by lines."""
    canvas = Canvas(title, 300)
    ends = [end for track in series for point in track.values if point is not None for end in point]
    y = Axis(ticks(min(0.0, *ends) if ends else 0.0, max(0.0, *ends) if ends else 1.0), 300 - 52, 30)
    left, right = 56.0, WIDTH - 16
    for mark in y.marks:
        canvas.line(left, y(mark), right, y(mark), "grid")
        canvas.text(left - 8, y(mark) + 4, tick_label(mark), "tick", "end")
    step = (right - left) / max(len(places), 1)
    every = math.ceil(max((len(place) for place in places), default=1) * 7.5 / step)
    for index, place in enumerate(places):
        if index % every == 0:
            canvas.text(left + (index + 0.5) * step, y.start + 18, _short(place, 20), "tick", "middle")
    for number, track in enumerate(series):
        aside = (number - (len(series) - 1) / 2) * min(7.0, step / (len(series) + 1))  # bars beside one another
        at = [left + (index + 0.5) * step + aside for index in range(len(places))]
        there = [(x, point) for x, point in zip(at, track.values, strict=True) if point is not None]
        if len(there) > 1:
            canvas.path([(x, y(point[0])) for x, point in there], f"curve {track.tone}")
        for x, (value, low, high) in there:
            canvas.line(x, y(low), x, y(high), f"error {track.tone}")
            what = f"{track.label}: {value:.4g} ({low:.4g} to {high:.4g})"
            canvas.circle(x, y(value), 4, f"dot {track.tone}", what)
    canvas.text((left + right) / 2, 292, x_label, "axis", "middle")
    canvas.text(6, 16, y_label, "axis")
    return canvas.svg()


def boxes(title: str, rows: Sequence[Box], x_label: str) -> str:
    """Spreads on one scale: dots, quartile box, median stroke and the mean as a diamond."""
    step, left = 62.0, 148.0
    height = step * len(rows) + 50
    canvas = Canvas(title, height)
    x = Axis(ticks(0, max((row.maximum for row in rows), default=0) or 1.0), left, WIDTH - 20)
    for mark in x.marks:
        canvas.line(x(mark), 4, x(mark), height - 46, "grid")
        canvas.text(x(mark), height - 29, tick_label(mark), "tick", "middle")
    for index, row in enumerate(rows):
        middle = index * step + 4 + step / 2
        low, median, high = row.quartiles
        canvas.text(left - 9, middle + 4, _short(row.label, 21), "tick strong", "end")
        canvas.line(x(row.minimum), middle, x(row.maximum), middle, f"error {row.tone}")
        for place, value in enumerate(row.dots):
            canvas.circle(x(value), middle + 18 + (place * 7 % 5 - 2) * 2.4, 2.4, f"faint {row.tone}")
        canvas.rect(x(low), middle - 9, x(high) - x(low), 18, f"box {row.tone}")
        canvas.line(x(median), middle - 9, x(median), middle + 9, f"median {row.tone}")
        diamond = [(x(row.mean), middle - 5), (x(row.mean) + 5, middle), (x(row.mean), middle + 5)]
        canvas.path([*diamond, (x(row.mean) - 5, middle), diamond[0]], f"mean {row.tone}")
    canvas.text((left + WIDTH - 20) / 2, height - 8, x_label, "axis", "middle")
    return canvas.svg()


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def thin_out(values: Sequence[tuple[int, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most `most` points of a curve, each the mean of its neighbours, so that long runs stay small."""
    width = math.ceil(len(values) / most) or 1
    parts = [values[start : start + width] for start in range(0, len(values), width)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
