"""The datasets that go by a name of their own, and where their files are found."""

from __future__ import annotations

import functools
import os
from importlib import resources
from pathlib import Path

import yaml

from sdft.data.download import download, matches
from sdft.errors import DataError
from sdft.models import cache_folder
from sdft.records import Settings


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
    """An entry's file in SDFT_DATA_DIR or, with the right hash, in the cache."""
    for folder in data_dirs():
        if (folder / entry.file).is_file():
            return folder / entry.file
    cached = _cached(entry)
    return cached if cached.is_file() and matches(cached, entry.sha256) else None


def fetch(name: str, entry: RegistryEntry) -> Path:
    """An entry's file, downloaded where it is not here. Raises DataError saying which file to put where."""
    found = local_file(entry)
    if found is not None:
        return found
    try:
        download(entry.url, _cached(entry), entry.sha256)
    except DataError as error:
        raise DataError(f"{absent(name, entry)}. The download failed: {error}") from None
    except OSError as error:
        raise DataError(f"{name}: {_cached(entry)} cannot be written ({error.strerror}); set SDFT_CACHE") from None
    return _cached(entry)


def absent(name: str, entry: RegistryEntry) -> str:
    """Where an entry's file was looked for, and how to provide it."""
    dirs = data_dirs()
    looked = (
        f"in SDFT_DATA_DIR ({os.pathsep.join(str(folder) for folder in dirs)})" if dirs else "(SDFT_DATA_DIR is unset)"
    )
    return (
        f"{name}: {entry.file} is neither {looked} nor in the cache; get it from {entry.url} and put it at "
        f"{_cached(entry)}, or set SDFT_DATA_DIR to the folder that holds {entry.file}"
    )


def _cached(entry: RegistryEntry) -> Path:
    return cache_folder() / "data" / entry.file
