"""Benchmarks: what is measured on the seed and on each tuned model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sdft.benchmarks.base import Benchmark


class Gsm8k(Benchmark):
    name: Literal["gsm8k"] = "gsm8k"


class Drift(Benchmark):
    name: Literal["drift"] = "drift"


AnyBenchmark = Annotated[Gsm8k | Drift, Field(discriminator="name")]
