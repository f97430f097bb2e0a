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
    mtime_ns: int = 0
    """When it was last written: while that and the size stay the same, its content is not read again."""


def source_files(config: DataConfig) -> list[SourceFile]:
    """The local files that a dataset is read from; none where it is generated or on the hub."""
    found = []
    for path in _files(config):
        stat = path.stat()
        found.append(SourceFile(path=str(path), size=stat.st_size, sha256=file_sha256(path), mtime_ns=stat.st_mtime_ns))
    return found


def changed(config: DataConfig, known: Iterable[SourceFile]) -> str | None:
    """The path of a file that is not what it was. None also where the files are not here: a run has its own copy."""
    before = list(known)
    files = _files(config)
    if files and len(files) != len(before):
        return config.dataset
    for path, old in zip(files, before, strict=False):
        stat = path.stat()
        if stat.st_size == old.size and (stat.st_mtime_ns == old.mtime_ns or file_sha256(path) == old.sha256):
            continue
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
