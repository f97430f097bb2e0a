"""What a recipe will take before it is run: rows, tokens, time, memory, disk and, on a paid server, money.

Tokens come from a sample of the rows, time from a short calibration on this machine. All of it is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator

from sdft.needs import with_engines
from sdft.planning.lines import Line, loading, total
from sdft.planning.room import disk, memory
from sdft.planning.sample import Counter, Sample, draw, token_counter
from sdft.planning.speed import Speed, calibrate, spoken
from sdft.planning.stages import analyzing, distilling, evaluating, training, uncounted
from sdft.recipe import Recipe


def plan_recipe(recipe: Recipe, processes: int = 1) -> Iterator[str]:
    """Yield what the recipe will take, a line each; `processes` are those that train together on this machine.

    Loads the model for a short calibration where an engine runs it here. Raises as a run does.
    """
    recipe, chosen = with_engines(recipe)
    yield from chosen
    lines: list[Line] = []
    for line in _lines(recipe, processes):
        lines.append(line)
        yield str(line)
    yield str(total(lines))


def _lines(recipe: Recipe, processes: int) -> Iterator[Line]:
    count = token_counter(recipe)
    sample = draw(recipe, count)
    if sample:
        yield Line("data", f"{sample.rows:,} examples, of which {len(sample.examples)} are looked at")
    speed = calibrate(recipe, sample)
    yield from spoken(recipe, speed)
    if speed and sample:
        sample = sample.with_replies_as(speed)
    work: list[Line] = []
    for line in _stages(recipe, count, sample, speed, processes):
        work.append(line)
        yield line
    if speed:
        yield from loading(work, speed.load)
    yield from memory(recipe, sample, processes)
    if sample:
        yield disk(recipe, sample)


def _stages(
    recipe: Recipe, count: Counter, sample: Sample | None, speed: Speed | None, processes: int
) -> Iterator[Line]:
    if sample:
        yield from distilling(recipe, sample, speed)
        yield from training(recipe, sample, speed, processes)
    yield from evaluating(recipe, count, sample, speed)
    if sample:
        yield from analyzing(recipe, sample, speed)
    yield uncounted(recipe)
