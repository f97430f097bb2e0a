"""What the tests of checks and benchmarks share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sdft.records import Example, Message


def data_file(name: str) -> Path:
    """A file below a folder of SDFT_DATA_DIR; the test is skipped where it is in none of them."""
    for folder in filter(None, os.environ.get("SDFT_DATA_DIR", "").split(os.pathsep)):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    pytest.skip(f"{name} is in no folder of SDFT_DATA_DIR")


def jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data_file(name).read_text(encoding="utf-8").splitlines()]


def example(reference: str, **meta: Any) -> Example:
    return Example(id="1", messages=(Message(role="user", content="question"),), reference=reference, meta=meta)
