"""What it costs to hand rows to other processes: two replicas as processes of this machine, and over Ray Data.

    python bench/replicas.py

The engine in each is `scripted`, which takes no time, so that what remains is the way there and back.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from sdft.engines import RaySettings, Request, Sampling, ScriptedSettings
from sdft.engines._processes import open_processes
from sdft.models import ModelConfig, packaged

WINDOW = 8
"""Rows in hand of each replica; over Ray each is a job of its own then."""


def measured(opened: Callable[[], Any], rows: int) -> tuple[float, float]:
    """Seconds until it is open, and rows per second."""
    requests = [Request(str(number), f"prompt {number}") for number in range(rows)]
    started = time.perf_counter()
    with closing(opened()) as engine:
        opening = time.perf_counter() - started
        list(engine.generate(requests[:20], Sampling()))  # both have started
        started = time.perf_counter()
        assert len(list(engine.generate(requests, Sampling()))) == rows
        return opening, rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    rows = parser.parse_args().rows
    model = ModelConfig(name="HuggingFaceTB/SmolLM2-135M-Instruct")
    assert packaged(model.name), "its weights come with `make`"
    print("| two replicas | until open | rows/s |\n|---|---|---|")
    ways = {
        "processes": lambda: open_processes(ScriptedSettings(), model, 2, WINDOW),
        "Ray Data": lambda: RaySettings(inner=ScriptedSettings(), replicas=2).open(model),
    }
    for name, opened in ways.items():
        opening, rate = measured(opened, rows)
        print(f"| {name} | {opening:.1f} s | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
