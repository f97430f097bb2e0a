"""Datasets: from whatever the recipe's `data:` section names to examples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

from sdft.data.config import DataConfig
from sdft.data.files import Row
from sdft.data.formats import BadRow, Layout, UnusableRow, as_messages, as_row, to_example
from sdft.data.registry import RegistryEntry, registered
from sdft.data.sources import GENERATED, Made, Table, find, hub_note, missing, provide, sliced, unfetched
from sdft.errors import DataError
from sdft.records import Example, Message

__all__ = [
    "GENERATED",
    "BadRow",
    "DataConfig",
    "RegistryEntry",
    "as_messages",
    "as_row",
    "hub_note",
    "iter_examples",
    "load_examples",
    "missing",
    "provide",
    "registered",
    "unfetched",
]

NAMED = 10
"""Bad rows that an error names."""

T = TypeVar("T")


def load_examples(dataset: str | DataConfig, limit: int | None = None) -> list[Example]:
    """All examples of a dataset, at most `limit` of them.

    `dataset` is what a recipe's `data.dataset` may be, or a whole `data:` section. Raises DataError.
    """
    config = DataConfig(dataset=dataset) if isinstance(dataset, str) else dataset
    if limit is not None:
        config = config.model_copy(update={"limit": min(limit, config.limit or limit)})
    return list(iter_examples(config))


def iter_examples(config: DataConfig, bad: list[BadRow] | None = None) -> Iterator[Example]:
    """Stream the examples of a dataset; bad rows are appended to `bad`.

    `on_bad_rows: error` raises DataError after the last good row, naming the first ten bad ones; `skip` goes
    without them. Raises DataError also where the dataset cannot be read, or not one row of it is an example.
    Rows are held in memory only where `shuffle`, or a slice by percent or from the end, needs all of them.
    """
    bad = [] if bad is None else bad
    already = len(bad)
    source = find(config)
    examples = _ready(source, config) if isinstance(source, Made) else _parsed(source, config, bad)
    count = 0
    for example in itertools.islice(examples, config.limit):
        count += 1
        yield example
    found = bad[already:]
    if found and (config.on_bad_rows == "error" or not count):
        raise DataError(_describe(config, found))
    if not count:
        raise DataError(f"{config.dataset}: no rows (split: {config.split})")


def _describe(config: DataConfig, found: list[BadRow]) -> str:
    named = "\n".join(f"  {row}" for row in found[:NAMED])
    more = f"\n  … and {len(found) - NAMED} more" if len(found) > NAMED else ""
    count = f"{len(found)} bad rows" if len(found) > 1 else "a bad row"
    way_out = "mend them, or leave them out with data.on_bad_rows=skip"
    if config.on_bad_rows == "skip":
        way_out = "no row is left; check data.format and data.columns"
    return f"{config.dataset}: {count}; {way_out}\n{named}{more}"


def _chosen(items: Iterable[T], config: DataConfig) -> Iterator[T]:
    """Shuffle, then slice."""
    if config.shuffle:
        whole = list(items)
        random.Random(config.seed).shuffle(whole)
        items = whole
    return sliced(items, config.split)


def _ready(source: Made, config: DataConfig) -> Iterator[Example]:
    for example in _chosen(source.examples(), config):
        if config.system and example.system is None:
            system = Message(role="system", content=config.system)
            example = example.model_copy(update={"messages": (system, *example.messages)})
        yield example


def _parsed(source: Table, config: DataConfig, bad: list[BadRow]) -> Iterator[Example]:
    layout: Layout | None = None
    seen: dict[str, int] = {}
    for item in _chosen(source.rows(), config):
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        if layout is None and isinstance(item.value, dict):
            layout = source.layout(item.value)
        try:
            if layout is None:
                raise UnusableRow("the row is not an object of columns")
            example, own = to_example(layout, item.value, config.system)
            yield _with_unique_id(example, own, item, seen)
        except UnusableRow as error:
            bad.append(BadRow(item.file, item.line, str(error)))


def _with_unique_id(example: Example, own: bool, row: Row, seen: dict[str, int]) -> Example:
    """Number rows of the same content; refuse an id of the dataset's own that has been used."""
    identity = example.id
    if own and identity in seen:
        raise UnusableRow(
            f"the id '{identity[:80]}' was used in line {seen[identity]} already (data.columns.id=null ignores ids)"
        )
    occurrence = 1
    while identity in seen:
        occurrence += 1
        identity = f"{example.id}-{occurrence}"
    seen[identity] = row.line
    return example if occurrence == 1 else example.model_copy(update={"id": identity})
