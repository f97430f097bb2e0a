"""The recipe's `data:` section, also used by benchmarks that read a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sdft.records import Settings

Format = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "columns"]
Conversion = Literal["gsm8k", "dolly", "magicoder", "openhermes"]


class DataConfig(Settings):
    """Which rows to read, and how to read them as examples."""

    dataset: str
    """A name from `sdft list datasets`, a file (.json, .jsonl and .csv, also .gz; .parquet), a folder with
    a `dataset_info.json` followed by `:name`, or a hub dataset's name."""
    format: Format = "auto"
    """How rows are laid out; `auto` tells from the columns of the first row."""
    columns: Mapping[str, str | None] = {}
    """For `format: columns`: `prompt`, `response` and, where they exist, `query`, `system`, `history`, `id`
    to the column that holds them, as in LLaMA-Factory. Other formats take `messages` (sharegpt, messages) or
    `prompt` and `response` where their columns have other names than usual. null: there is no such part;
    `id: null` gives rows ids made of their content, where those of their own stand more than once."""
    convert: Conversion | None = None
    """Rows are in the form in which this dataset's authors publish it, such as gsm8k's with `<<…>>` and `#### N`:
    turn them into the reference's form first."""
    system: str | None = None
    """A system text for rows that have none."""
    subset: str | None = None
    """Hub configuration name, such as `main` of gsm8k."""
    revision: str | None = None
    """Hub revision: a branch, tag or commit."""
    split: str = "train"
    """A split, with an optional slice as in `datasets`: `train`, `train[:90%]`, `test[100:200]`."""
    shuffle: bool = False
    """Shuffle (with `seed`) before `split` slices and `limit` cuts."""
    seed: int = 0
    limit: int | None = Field(default=None, ge=1)
    """At most this many rows."""
    on_bad_rows: Literal["error", "skip"] = "error"
    """`error` stops and names the bad rows; `skip` leaves them out, counted and named."""
    options: dict[str, Any] = {}
    """Settings of a generated dataset, such as reasoning_gym's `task`, `size` and `seed`."""
