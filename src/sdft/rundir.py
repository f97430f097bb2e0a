"""A run folder on disk: paths, JSONL files, stage markers, the lock, and seeds.

    runs/<name>/
      recipe.yaml  manifest.json
      data/train.jsonl
      distill/rewrites.jsonl
      select/choices.jsonl  summary.json  distilled.jsonl …
      train/<method>/
      eval/<model>/<benchmark>/predictions.jsonl  scores.json
      report/report.html  report.md  report.json
      stages/<stage>.json       digest and completion marker of each stage

Nothing half-written is taken for whole: small files are written beside their place and renamed; JSONL files
are appended line by line and lose a torn last line when they are opened again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from pydantic import ValidationError

from sdft.errors import RunError
from sdft.records import Record

R = TypeVar("R", bound=Record)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written."""
PROBE = 1 << 20
"""Bytes that fit on a disk which is not full."""


def seed_for(*parts: str | int) -> int:
    """A 63-bit seed that depends on nothing but `parts`, such as (recipe seed, stage, example id, candidate)."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def digest(value: Any) -> str:
    """A short hash of any JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """Open a text file that appears under its name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turn an error in the block into OSError where the disk that holds `folder` turns out to be full.

    torch, safetensors and tokenizers tell of a full disk in errors of their own, some without naming it.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        probe = folder / ".probe"
        try:
            with probe.open("wb") as file:
                file.write(bytes(PROBE))
        except OSError as full:
            if full.errno in FULL:
                raise full from error
        finally:
            probe.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RunError where it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: missing; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it and run again") from None


class JsonlWriter:
    """Appends records to a JSONL file, one `write` a line. A torn last line is cut off first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append one record. Raises OSError where the disk is full; what stands before it is whole."""
        line = record.model_dump_json(exclude_defaults=False).encode() + b"\n"
        view = memoryview(line)
        while view:  # an unbuffered write may be short when the disk fills
            view = view[self._file.write(view) :]

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def drop_torn_line(path: Path) -> None:
    """Cut what stands after the last newline: the line that a killed process did not finish."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != end:
            file.truncate(keep)


def read_jsonl(path: Path, record: type[R]) -> Iterator[R]:
    """Stream records. Raises RunError naming the file and line that cannot be read."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise RunError(f"{path}: missing; run the stage that writes it") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn: its writer was killed, and will write it again
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                what = error.errors()[0]["msg"]
                raise RunError(
                    f"{path}:{number}: not a {record.__name__} ({what}); mend or delete the file, then run again"
                ) from None


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write a whole JSONL file atomically; returns the number of lines."""
    count = 0
    with atomic_write(path) as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            count += 1
    return count


@dataclass(frozen=True)
class Jsonl(Generic[R]):
    """The records of a JSONL file, read anew from the disk each time it is iterated."""

    path: Path
    record: type[R]

    def __iter__(self) -> Iterator[R]:
        return read_jsonl(self.path, self.record)


def count_lines(path: Path) -> int:
    """The number of whole lines of a file; 0 where it does not exist."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


class RunDir:
    """One run folder. Use it as a context manager to hold its lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def __truediv__(self, part: str) -> Path:
        return self.path / part

    def __enter__(self) -> RunDir:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise RunError(
                f"{self.path}: the run folder cannot be made ({error.strerror}); set output_dir=FOLDER"
            ) from None
        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise RunError(
                f"{self.path}: another process (pid {owner}) works on this run; wait for it, or give this run "
                "another name with name=NAME"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Stage markers

    def stage_file(self, stage: str) -> Path:
        """Where a stage's digest and completion marker stand; `stage` may hold a slash, as `train/sft`."""
        return self.path / "stages" / f"{stage.replace('/', '.')}.json"

    def stage_state(self, stage: str) -> Mapping[str, Any] | None:
        """`{"inputs": …, "digest": …, "finished": bool, …}` as last written, or None."""
        path = self.stage_file(stage)
        if not path.exists():
            return None
        state = read_json(path)
        wanted = {"inputs", "digest", "finished"}
        if not isinstance(state, dict) or not wanted <= set(state):
            raise RunError(f"{path}: not a stage's marker; delete it and give the same command again")
        if state["finished"] and "files" not in state:
            raise RunError(f"{path}: of an earlier sdft, without a list of files; delete it, and the stage is redone")
        return state

    def is_complete(self, stage: str) -> bool:
        """Whether the stage is done, whatever its inputs, and all its files are still there."""
        state = self.stage_state(stage)
        return bool(state and state["finished"] and all((self / file).is_file() for file in state["files"]))

    def is_finished(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the stage is done for just these inputs, and all its files are still there."""
        state = self.stage_state(stage)
        return bool(state and state["digest"] == digest(inputs) and self.is_complete(stage))

    def changes(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Dotted key → (then, now) where this folder's work for a stage was made with other inputs."""
        state = self.stage_state(stage)
        return {} if state is None else changes(state["inputs"], inputs)

    def check(
        self, stage: str, inputs: Mapping[str, Any], mild: Callable[[str, Any, Any], bool] = lambda *_: False
    ) -> None:
        """Raise RunError, naming the keys, where the folder holds this stage's work for other inputs.

        `mild(key, then, now)` tells a change that does not make that work useless.
        """
        hard = {key: pair for key, pair in self.changes(stage, inputs).items() if not mild(key, *pair)}
        if hard:
            named = "; ".join(f"{key}: {_shown(then)} → {_shown(now)}" for key, (then, now) in hard.items())
            raise RunError(
                f"{self.path}: stage '{stage}' was made with other settings ({named}). Give this run another name "
                f"with name=NAME, restore the settings, or make it anew with --redo {stage}"
            )

    def claim(self, stage: str, inputs: Mapping[str, Any], weights: Mapping[str, str] | None = None) -> None:
        """Mark a stage as begun for these inputs, whatever it was made with before.

        `weights` says which model files it works with; None where it loads none.
        """
        state = {"digest": digest(inputs), "finished": False, "inputs": inputs, "weights": weights}
        write_json(self.stage_file(stage), state)

    def finish(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        seconds: float,
        notes: Sequence[str] = (),
        files: Iterable[Path] = (),
        hashed: Iterable[Path] = (),
    ) -> None:
        """Write the completion marker, last of all: what a person should know, the stage's files, hashes of some."""
        claimed = self.stage_state(stage) or {}
        state = {
            "weights": claimed.get("weights"),
            "digest": digest(inputs),
            "finished": True,
            "seconds": round(seconds, 1),
            "notes": list(notes),
            "files": [path.relative_to(self.path).as_posix() for path in sorted(files)],
            "hashes": {path.relative_to(self.path).as_posix(): file_sha256(path) for path in sorted(hashed)},
            "inputs": inputs,
        }
        write_json(self.stage_file(stage), state)

    def forget(self, stage: str, files: Path) -> None:
        """Drop a stage's marker, then its files (a file or a folder, half-written too), so that it is made anew."""
        self.stage_file(stage).unlink(missing_ok=True)
        for path in (files, files.with_name(f".{files.name}.part")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def changes(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key → (old value, new value) wherever two trees of mappings differ."""
    if old == new:
        return {}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {prefix: (old, new)}
    out: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        out |= changes(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    return out


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
