"""Benchmarks: what is measured on the seed and on each tuned model.

To add one: a file with a class whose `name` is a Literal, and the class in `AnyBenchmark`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sdft.benchmarks.advbench import AdvBench
from sdft.benchmarks.alpaca_eval import AlpacaEval
from sdft.benchmarks.base import Benchmark, HarnessBenchmark, Metric
from sdft.benchmarks.bfcl_simple import BfclSimple
from sdft.benchmarks.dataset import OwnDataset
from sdft.benchmarks.drift import Drift
from sdft.benchmarks.gsm8k import Gsm8k
from sdft.benchmarks.humaneval import HumanEval
from sdft.benchmarks.ifeval import IfEval
from sdft.benchmarks.knowledge import Knowledge
from sdft.benchmarks.mbpp import Mbpp
from sdft.benchmarks.multiarith import MultiArith
from sdft.benchmarks.openfunction import OpenFunction
from sdft.benchmarks.reasoning_gym import ReasoningGym
from sdft.benchmarks.xstest import XSTest

AnyBenchmark = Annotated[
    OwnDataset
    | ReasoningGym
    | BfclSimple
    | OpenFunction
    | Gsm8k
    | MultiArith
    | HumanEval
    | Mbpp
    | AdvBench
    | XSTest
    | AlpacaEval
    | Drift
    | IfEval
    | Knowledge,
    Field(discriminator="name"),
]

__all__ = [
    "AdvBench",
    "AlpacaEval",
    "AnyBenchmark",
    "Benchmark",
    "BfclSimple",
    "Drift",
    "Gsm8k",
    "HarnessBenchmark",
    "HumanEval",
    "IfEval",
    "Knowledge",
    "Mbpp",
    "Metric",
    "MultiArith",
    "OpenFunction",
    "OwnDataset",
    "ReasoningGym",
    "XSTest",
]
