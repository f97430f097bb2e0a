"""Rows of files: .json, .jsonl (both also .gz), .csv and .parquet.

A row that cannot be read is a `BadRow` and reading goes on behind it; a file that cannot be read is a DataError.
JSON lines and CSV are streamed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from sdft.data.formats import MAX_ROW_CHARS, BadRow
from sdft.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read. `value` is an object for all but broken .json and .jsonl rows."""

    file: str
    line: int
    value: Any


Rows = Iterator[Row | BadRow]


def is_data_file(name: str) -> bool:
    """Whether a name ends like a file that can be read."""
    return _reader(name) is not None


def read_file(path: Path) -> Rows:
    """Stream the rows of one file. Raises DataError where the file as a whole cannot be read."""
    reader = _reader(path.name)
    if reader is None:
        raise DataError(f"{path}: cannot tell the kind of file; there are: {', '.join(SUFFIXES)}")
    try:
        yield from reader(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row in JSON's own types: dates, decimals and bytes become text."""
    copy: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return copy


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_json(path: Path) -> Rows:
    with _open(path) as file:
        data = file.read()
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        yield from _lines(path, _bounded(io.BytesIO(data)))  # JSON lines under the name .json are common
        return
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; write the file again in that encoding") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); is the file whole?") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: a .json dataset is a list of objects; this file holds one {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield Row(str(path), number, row)


def _read_jsonl(path: Path) -> Rows:
    with _open(path) as file:
        yield from _lines(path, _bounded(file))


def _bounded(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file; of an over-long line only its beginning, so that memory stays bounded."""
    while line := file.readline(MAX_ROW_CHARS + 2):
        yield line
        while not line.endswith(b"\n") and line:
            line = file.readline(MAX_ROW_CHARS)


def _lines(path: Path, lines: Iterable[bytes]) -> Rows:
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            yield Row(str(path), number, _parse_line(line))
        except ValueError as error:
            yield BadRow(str(path), number, str(error))


def _parse_line(line: bytes) -> Any:
    """Raises ValueError saying why the line is broken."""
    if len(line) > MAX_ROW_CHARS + 1:
        raise ValueError(f"the line is over-long: more than {MAX_ROW_CHARS:,} bytes")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not readable as JSON: nested too deep") from None


def _read_csv(path: Path) -> Rows:
    csv.field_size_limit(MAX_ROW_CHARS)  # Python's own limit of 131,072 would refuse long replies
    # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own row only.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:1: not valid CSV ({error})") from None
        if not header or len(set(header)) < len(header) or not _is_unicode(header):
            raise DataError(f"{path}:1: the first line of a .csv names the columns, each once, in UTF-8")
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(str(path), line, f"not valid CSV ({error})")
                continue
            if not cells:
                continue
            if not _is_unicode(cells):
                yield BadRow(str(path), line, "not UTF-8")
            elif len(cells) != len(header):
                yield BadRow(str(path), line, f"{len(cells)} cells; the header has {len(header)}")
            else:
                yield Row(str(path), line, dict(zip(header, cells, strict=True)))


def _is_unicode(cells: list[str]) -> bool:
    return not any("\ud800" <= character <= "\udfff" for cell in cells if not cell.isascii() for character in cell)


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield Row(str(path), number, plain(row))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from None


SUFFIXES: dict[str, Callable[[Path], Rows]] = {
    ".json": _read_json,
    ".json.gz": _read_json,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _reader(name: str) -> Callable[[Path], Rows] | None:
    return next((reader for suffix, reader in SUFFIXES.items() if name.lower().endswith(suffix)), None)
