"""Rows of files: .json, .jsonl, .csv (all also .gz) and .parquet.

A row that cannot be read is a `BadRow` and reading goes on behind it; a file that cannot be read is a DataError.
JSON lines and CSV are streamed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
        raise unknown_kind(path)
    with _readable(path):
        yield from reader(path)


def unknown_kind(path: Path) -> DataError:
    """What is wrong with a file whose name does not tell how to read it."""
    return DataError(f"{path}: cannot tell the kind of file; there are: {', '.join(SUFFIXES)}")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Stream the lines of a file, also a .gz, with their numbers: without blank ones, and without a BOM.

    Of an over-long line only the beginning comes. Raises DataError where the file as a whole cannot be read.
    """
    with _readable(path), _open(path) as file:
        yield from _numbered(_bounded(file))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row in JSON's own types: dates, decimals and bytes become text."""
    copy: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return copy


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Raises DataError for UTF-16, each line of which would be refused by itself."""
    with gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{path}: the file is in UTF-16; convert it to UTF-8")
        yield cast("IO[bytes]", file)


def _read_json(path: Path) -> Rows:
    with _open(path) as file:
        data = file.read()
    text = data.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"{"):
        if _is_one_object(text):
            raise DataError(
                f"{path}: a .json dataset is a list of objects; this file holds one object, over several lines"
            )
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


def _is_one_object(text: bytes) -> bool:
    """Whether text that begins with a brace is one object over several lines, whole or not, and no JSON lines."""
    first, _, rest = text.partition(b"\n")
    if first.strip() == b"{":
        return True
    if not rest.strip() or _is_json(first):
        return False
    return _is_json(text)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


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
    for number, line in _numbered(lines):
        try:
            yield Row(str(path), number, _parse_line(line))
        except ValueError as error:
            yield BadRow(str(path), number, str(error))


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def _parse_line(line: bytes) -> Any:
    """Raises ValueError saying why the line is broken."""
    if len(line) > MAX_ROW_CHARS + 1:
        raise ValueError(f"the line is over-long: more than {MAX_ROW_CHARS:,} bytes")
    try:
        return json.loads(line.decode().rstrip("\r\n"))  # so that a column is one of this line
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not readable as JSON: nested too deep") from None


UNCLOSED = ("unexpected end of data", "field larger than field limit")
"""What csv says where a cell has taken in all that follows: the end of the file, or more than a cell may hold."""


def _read_csv(path: Path) -> Rows:
    csv.field_size_limit(MAX_ROW_CHARS)  # Python's own limit of 131,072 would refuse long replies
    # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own row only.
    with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
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
                behind = reader.line_num - line
                if behind and str(error).startswith(UNCLOSED):
                    behind += sum(1 for _ in file)
                    raise DataError(
                        f"{path}:{line}: a quote opens in the row that begins here and is not closed, so the "
                        f"{behind:,} lines behind it cannot be read; close it, or double it if it belongs to the text"
                    ) from None
                taken = f"; lines {line} to {reader.line_num} are lost with it" if behind else ""
                yield BadRow(str(path), line, f"not valid CSV ({error}){taken}")
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
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}


def _reader(name: str) -> Callable[[Path], Rows] | None:
    return next((reader for suffix, reader in SUFFIXES.items() if name.lower().endswith(suffix)), None)
