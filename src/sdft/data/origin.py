"""Which files a run's examples were read from, and whether they have changed since."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdft.data.config import DataConfig
from sdft.data.registry import local_file, registered
from sdft.data.sources import Table, find
from sdft.errors import DataError
from sdft.records import Record
from sdft.rundir import file_sha256

SOURCES = "data/sources.jsonl"
"""Where a run keeps them."""


class SourceFile(Record):
    """One file of a dataset, as it was when it was read."""

    path: str
    size: int
    """In bytes."""
    sha256: str


def source_files(config: DataConfig) -> list[SourceFile]:
    """The local files that a dataset is read from; none where it is generated or on the hub."""
    return [SourceFile(path=str(path), size=path.stat().st_size, sha256=file_sha256(path)) for path in _files(config)]


def changed(config: DataConfig, known: Iterable[SourceFile]) -> str | None:
    """The path of a file that is not what it was. None also where the files are not here: a run has its own copy."""
    before = list(known)
    files = _files(config)
    if files and len(files) != len(before):
        return config.dataset
    for path, old in zip(files, before, strict=False):
        if path.stat().st_size != old.size or file_sha256(path) != old.sha256:
            return str(path)
    return None


def _files(config: DataConfig) -> list[Path]:
    entry = registered().get(config.dataset)
    if entry is not None:
        path = local_file(entry)
        return [path] if path else []
    try:
        source = find(config)
    except DataError:
        return []
    return [path for path in source.files if path.is_file()] if isinstance(source, Table) else []
