"""bench/gpu.py without a GPU: whatever a part comes to is noted and written, and the next one is done."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from sdft.errors import ModelError


@pytest.fixture
def gpu() -> Any:
    path = Path(__file__).parents[1] / "bench/gpu.py"
    spec = importlib.util.spec_from_file_location("bench_gpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_part_is_noted_and_written_whatever_it_comes_to(gpu: Any, tmp_path: Path) -> None:
    import torch

    out = tmp_path / "found.json"
    bench = gpu.Bench(1.0, out)
    rows = bench.found["training"]

    def fails(error: BaseException) -> None:
        raise error

    def written() -> Any:
        return json.loads(out.read_text(encoding="utf-8"))

    assert bench.part("good", rows, lambda: rows.append({"name": "good"}))
    for name, error in (("bare", torch.OutOfMemoryError("x")), ("told", ModelError("the device is out of memory; …"))):
        assert not bench.part(name, rows, lambda error=error: fails(error))
        assert written()["training"][-1] == {"name": name, "out_of_memory": True}
    assert written()["problems"] == []
    bench.part("broken", rows, lambda: fails(ModelError("no such model")))
    assert written()["problems"] == ["broken: ModelError: no such model"]
    previous = signal.signal(signal.SIGALRM, gpu._time_up)
    try:
        bench.part("long", rows, lambda: signal.raise_signal(signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, previous)
    bench.end = 0.0
    assert not bench.part("late", rows, lambda: rows.append({"name": "late"}))
    assert written()["left out"] == ["long (cut off)", "late"]
    assert [row["name"] for row in written()["training"]] == ["good", "bare", "told"]
