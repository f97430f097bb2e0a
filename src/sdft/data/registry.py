"""The datasets that go by a name of their own, and where their files are found."""

from __future__ import annotations

import functools
import json
import os
from importlib import resources
from pathlib import Path

import yaml

from sdft.data.config import Conversion
from sdft.data.conversions import converted
from sdft.data.download import download, matches
from sdft.data.formats import BadRow
from sdft.data.hub import hub_rows
from sdft.errors import DataError
from sdft.models import cache_folder
from sdft.records import Settings
from sdft.rundir import atomic_write


class HubSource(Settings):
    """A hub dataset that holds an entry's rows in the form of its authors."""

    name: str
    subset: str | None = None
    split: str
    """A split, with a slice where only so many rows are wanted: `train[:2000]`."""
    revision: str
    """A commit: the rows of a branch may change between two stages of a run."""
    convert: Conversion
    same_rows: bool
    """Whether these are the reference's rows, in its order; else it drew others from the same dataset."""


class RegistryEntry(Settings):
    """One entry of registry.yaml."""

    description: str
    rows: int
    """As the reference reports it."""
    file: str
    """Relative to a folder of SDFT_DATA_DIR, and to the download cache."""
    columns: dict[str, str]
    url: str
    sha256: str | None = None
    """Of the file behind `url`; None where it is not known."""
    hub: HubSource | None = None
    """Asked where `url` does not answer."""


@functools.cache
def _entries() -> dict[str, RegistryEntry]:
    text = resources.files("sdft.data").joinpath("registry.yaml").read_text(encoding="utf-8")
    return {name: RegistryEntry.model_validate(value) for name, value in yaml.safe_load(text).items()}


def registered() -> dict[str, RegistryEntry]:
    """Every registered dataset by name."""
    return dict(_entries())


def data_dirs() -> tuple[Path, ...]:
    """The folders of SDFT_DATA_DIR, a path list like PATH."""
    return tuple(Path(part).expanduser() for part in os.environ.get("SDFT_DATA_DIR", "").split(os.pathsep) if part)


def find_file(name: str) -> Path | None:
    """A file by its path, from here or from a folder of SDFT_DATA_DIR; None where it is in none of them."""
    places = [Path(name).expanduser(), *(folder / name for folder in data_dirs())]
    return next((place for place in places if place.is_file()), None)


def local_file(entry: RegistryEntry) -> Path | None:
    """An entry's file in SDFT_DATA_DIR or, with the right hash, in the cache; else what came from the hub."""
    for folder in data_dirs():
        if (folder / entry.file).is_file():
            return folder / entry.file
    cached = _cached(entry)
    if cached.is_file() and matches(cached, entry.sha256):
        return cached
    return hub_file(entry) if entry.hub and hub_file(entry).is_file() else None


def hub_file(entry: RegistryEntry) -> Path:
    """Where an entry's rows stand that were taken from the hub."""
    return (cache_folder() / "data" / "hub" / entry.file).with_suffix(".jsonl")


def fetch(name: str, entry: RegistryEntry) -> Path:
    """An entry's file, downloaded where it is not here. Raises DataError saying which file to put where."""
    found = local_file(entry)
    if found is not None:
        return found
    try:
        download(entry.url, _cached(entry), entry.sha256)
        return _cached(entry)
    except DataError as error:
        failed = f"{absent(name, entry)}. The download failed: {error}"
    except OSError as error:
        raise DataError(f"{name}: {_cached(entry)} cannot be written ({error.strerror}); set SDFT_CACHE") from None
    if entry.hub is None:
        raise DataError(failed)
    try:
        return _from_hub(entry, entry.hub)
    except DataError as error:
        raise DataError(f"{failed}. The hub: {error}") from None


def _from_hub(entry: RegistryEntry, hub: HubSource) -> Path:
    """Write a hub dataset's rows, converted, into the cache. Raises DataError."""
    target = hub_file(entry)
    with atomic_write(target) as file:
        for row in converted(hub_rows(hub.name, hub.subset, hub.split, hub.revision), hub.convert):
            if isinstance(row, BadRow):
                raise DataError(f"{row}; it is laid out in another way now")
            file.write(json.dumps(row.value, ensure_ascii=False) + "\n")
    return target


def absent(name: str, entry: RegistryEntry) -> str:
    """Where an entry's file was looked for, and how to provide it."""
    dirs = data_dirs()
    looked = (
        f"in SDFT_DATA_DIR ({os.pathsep.join(str(folder) for folder in dirs)})" if dirs else "in SDFT_DATA_DIR (unset)"
    )
    return (
        f"{name}: {entry.file} is neither {looked} nor in the cache; get it from {entry.url} and put it at "
        f"{_cached(entry)}, or set SDFT_DATA_DIR to the folder that holds {entry.file}"
    )


def _cached(entry: RegistryEntry) -> Path:
    return cache_folder() / "data" / entry.file
