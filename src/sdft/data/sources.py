"""Where a recipe's `data.dataset` leads: a registered name, a generated dataset, a file, an entry of a
dataset_info.json, or a hub dataset. Each is a stream of rows with a layout, or of examples ready-made.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sdft.data.bfcl import BfclOptions, bfcl_examples, missing_bfcl
from sdft.data.config import DataConfig
from sdft.data.conversions import COLUMNS, converted
from sdft.data.files import Rows, is_data_file, read_file, unknown_kind
from sdft.data.formats import Columns, Conversation, Layout, Tags, choose_layout, flat_layout, id_columns
from sdft.data.hub import hub_rows
from sdft.data.reasoning import ReasoningGymOptions, missing_reasoning_gym, reasoning_gym_examples
from sdft.data.registry import absent, data_dirs, fetch, find_file, hub_file, local_file, registered
from sdft.errors import DataError, did_you_mean
from sdft.records import Example, Settings

S = TypeVar("S", bound=Settings)
T = TypeVar("T")

GENERATED: dict[str, str] = {
    "reasoning_gym": "Generated questions with exact answers; options: task, size, seed, config, unique, exclude",
    "bfcl_simple": "400 requests with a function and its accepted arguments (BFCL simple_python); options: part",
}

INFO = "dataset_info.json"


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset of rows."""

    rows: Callable[[], Rows]
    layout: Callable[[Mapping[str, Any]], Layout]
    """From the first row."""
    files: tuple[Path, ...] = ()
    """The local files that the rows stand in, where they go by their own paths."""


@dataclass(frozen=True, slots=True)
class Made:
    """A dataset of ready-made examples."""

    examples: Callable[[], Iterator[Example]]


def find(config: DataConfig) -> Table | Made:
    """What `config.dataset` names. Raises DataError; reads no rows, and downloads nothing yet."""
    name = config.convert
    if name is None:
        return _named(config)
    if config.dataset in GENERATED:
        raise DataError(f"data.convert: '{config.dataset}' is generated, and has no rows to convert")
    if config.format == "auto":
        config = config.model_copy(update={"columns": _columns(config, COLUMNS[name])})
    source = _named(config)
    assert isinstance(source, Table)
    return Table(lambda: converted(source.rows(), name), source.layout, source.files)


def _named(config: DataConfig) -> Table | Made:
    name = config.dataset
    if name in GENERATED:
        _only_train(config, f"'{name}' is generated")
        return _generated(config)
    if config.options:
        raise DataError(f"{name}: data.options are for generated datasets ({', '.join(GENERATED)})")
    entry = registered().get(name)
    if entry is not None:
        _only_train(config, f"'{name}' is one file")
        columns = _columns(config, entry.columns)
        return Table(
            lambda: read_file(fetch(name, entry)),
            lambda first: choose_layout(config.format, columns, first, name),
        )
    if Path(name).is_dir() or Path(name).name == INFO:
        raise DataError(f"{name}: say which dataset of its {INFO} is meant, as {name}:NAME")
    if is_data_file(name):
        _only_train(config, f"'{name}' is one file")
        path = _existing(name)
        return Table(
            lambda: read_file(path),
            lambda first: choose_layout(config.format, config.columns, first, str(path)),
            (path,),
        )
    found = find_file(name)
    if found is not None:
        raise unknown_kind(found)
    place, colon, part = name.rpartition(":")
    if colon:
        return _from_info(place, part, config)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Table(
            lambda: hub_rows(name, config.subset, _base(config.split), config.revision),
            lambda first: choose_layout(config.format, config.columns, first, name),
        )
    known = sorted([*registered(), *GENERATED])
    raise DataError(
        f"data.dataset: no '{name}'{did_you_mean(name, known)}; a file ends in .json, .jsonl, .csv or .parquet; a hub "
        "dataset is written owner/name"
    )


def _columns(config: DataConfig, own: Columns) -> Columns:
    """The recipe's columns, in place of the dataset's `own` where they name more than the id's."""
    return config.columns if config.columns.keys() - {"id"} else {**own, **config.columns}


def missing(config: DataConfig) -> str | None:
    """What is absent for reading `config`, and how to get it, without reading a row; None where all is there.

    Of a hub dataset nothing can be told without asking the hub, and a registered one is fetched: see `unfetched`.
    """
    try:
        find(config)
    except DataError as error:
        return str(error)
    if config.dataset == "reasoning_gym":
        return missing_reasoning_gym()
    if config.dataset == "bfcl_simple":
        return missing_bfcl(data_dirs())
    return None


def unfetched(config: DataConfig) -> str | None:
    """Where a registered dataset that is not here will be fetched from, and how to provide it; None for others."""
    entry = registered().get(config.dataset)
    return absent(config.dataset, entry) if entry and local_file(entry) is None else None


def provide(config: DataConfig) -> None:
    """Fetch a registered dataset that is not here. Raises DataError where that fails."""
    entry = registered().get(config.dataset)
    if entry is not None:
        fetch(config.dataset, entry)


def hub_note(config: DataConfig) -> list[str]:
    """Where the rows are not the reference's own: a sentence that says so."""
    entry = registered().get(config.dataset)
    if entry is None or entry.hub is None or entry.hub.same_rows or local_file(entry) != hub_file(entry):
        return []
    return [
        f"data: {config.dataset} was taken from the hub ({entry.hub.name}, {entry.hub.split}): the same dataset, not "
        "the rows that the reference drew from it"
    ]


def _generated(config: DataConfig) -> Made:
    if config.columns or config.format != "auto":
        raise DataError(f"{config.dataset}: a generated dataset has no format and no columns to be told")
    if config.dataset == "reasoning_gym":
        task = _options(ReasoningGymOptions, config)
        return Made(lambda: reasoning_gym_examples(task))
    part = _options(BfclOptions, config)
    return Made(lambda: bfcl_examples(part, data_dirs()))


def _options(kind: type[S], config: DataConfig) -> S:
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            what = item["msg"][0].lower() + item["msg"][1:]
            if item["type"] == "extra_forbidden":
                known = kind if len(item["loc"]) == 1 else None
                what = f"unknown key{did_you_mean(key, sorted(known.model_fields)) if known else ''}"
            problems.append(f"data.options.{key}: {what}")
        raise DataError(f"{config.dataset}: {'; '.join(problems)}") from None


def _existing(name: str) -> Path:
    path = find_file(name)
    if path is None:
        dirs = ", ".join(str(folder) for folder in data_dirs()) or "unset"
        raise DataError(f"{name}: no such file, neither here ({Path.cwd()}) nor in SDFT_DATA_DIR ({dirs})")
    return path


# LLaMA-Factory's dataset_info.json


def _from_info(place: str, name: str, config: DataConfig) -> Table:
    info_file = _existing(place if place.endswith(".json") else f"{place}/{INFO}")
    where = f"{info_file}:{name}"
    entry = _info_entry(info_file, name)
    _only_train(config, f"{where} is one split")
    columns: dict[str, str] = {part: column for part, column in entry.get("columns", {}).items() if column}
    ids = {part: column for part, column in config.columns.items() if part == "id"}
    if entry.get("ranking"):
        raise DataError(f"{where}: a preference dataset has no single reply to distil")
    if entry.get("formatting", "alpaca") == "alpaca":
        standard = {"prompt": "instruction", "query": "input", "response": "output"}
        layout: Layout = flat_layout({**standard, **columns, **ids}, where)
    else:
        tags = Tags.from_info(entry["tags"]) if "tags" in entry else Tags()
        column = columns.get("messages", "messages" if entry["formatting"] == "openai" else "conversations")
        layout = Conversation(column, columns.get("system"), tags, id_columns(ids))
    count: int | None = entry.get("num_samples")  # the first ones: LLaMA-Factory draws others at each run
    hub = entry.get("hf_hub_url")
    if hub:
        subset, split = config.subset or entry.get("subset"), entry.get("split", "train")
        return Table(
            lambda: itertools.islice(hub_rows(hub, subset, split, config.revision), count), lambda first: layout
        )
    if "file_name" not in entry:
        raise DataError(f"{where}: names neither file_name nor hf_hub_url")
    files = _files_of(info_file.parent / entry["file_name"], where)
    return Table(
        lambda: itertools.islice((row for file in files for row in read_file(file)), count),
        lambda first: layout,
        tuple(files),
    )


def _info_entry(path: Path, name: str) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        entry = entries[name]
        columns, tags = entry.get("columns", {}), entry.get("tags", {})
        texts = [*columns.values(), *tags.values(), entry.get("file_name", ""), entry.get("hf_hub_url", "")]
        if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt", "openai"):
            raise DataError(f"{path}: {name}: unknown formatting {entry['formatting']!r}; alpaca, sharegpt or openai")
        if not all(text is None or isinstance(text, str) for text in texts):
            raise TypeError("columns, tags and names are texts")
        count = entry.get("num_samples")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise TypeError(f"num_samples is a number of rows, not {count!r}")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except KeyError:
        raise DataError(f"{path}: no dataset '{name}'{did_you_mean(name, sorted(entries))}") from None
    except (TypeError, AttributeError) as error:
        raise DataError(f"{path}: not laid out as LLaMA-Factory's {INFO} ({error})") from None
    return dict(entry)


def _files_of(path: Path, where: str) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if is_data_file(file.name))
        if not files:
            raise DataError(f"{where}: no data file in {path}")
        return files
    if not path.is_file():
        raise DataError(f"{where}: {path} is not there; put the file in that place")
    return [path]


# Splits

SPLIT = re.compile(r"(?P<base>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def _parse_split(split: str) -> re.Match[str]:
    match = SPLIT.fullmatch(split.replace(" ", ""))
    if match is None:
        raise DataError(f"data.split: '{split}' is not of the form train, train[:90%] or test[100:200]")
    return match


def _base(split: str) -> str:
    return _parse_split(split)["base"]


def _only_train(config: DataConfig, what: str) -> None:
    base = _base(config.split)
    if base != "train":
        raise DataError(f"data.split: {what}, so it has no split '{base}'; write train, or a slice such as train[:90%]")


def sliced(items: Iterable[T], split: str) -> Iterator[T]:
    """The items that a split's slice names. Streams where the slice counts from the start."""
    start, stop = _parse_split(split).group("start", "stop")
    if not any(bound and ("%" in bound or "-" in bound) for bound in (start, stop)):
        return itertools.islice(items, int(start or 0), int(stop) if stop else None)
    whole = list(items)
    return iter(whole[_bound(start, len(whole)) : _bound(stop, len(whole))])


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
