"""Download a file: resumable, checked, and never half there under its own name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from sdft.errors import DataError
from sdft.rundir import file_sha256

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 16


class Interrupted(Exception):
    """The connection failed; what has come so far is kept."""


def download(url: str, target: Path, sha256: str | None) -> None:
    """Fetch `url` into `target`.

    Bytes are gathered in `target`.part, which a later call goes on with; only a whole file with the right hash
    is renamed to `target`. A cut connection is taken up again for as long as each attempt brings something.
    Raises DataError, which leaves naming `url` to the caller, where the file cannot be had or is another one.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise DataError("not downloaded, because HF_HUB_OFFLINE is set")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a second process waits, then finds the file there
        if target.exists() and matches(target, sha256):
            part.unlink(missing_ok=True)
            return
        _fetch_all(url, file)
        if not matches(part, sha256):
            found = file_sha256(part)
            file.truncate(0)
            raise DataError(
                f"the file has sha256 {found}, expected {sha256}; it was thrown away. Try again, or put the "
                f"right file at {target}"
            )
        part.replace(target)


def matches(path: Path, sha256: str | None) -> bool:
    """Whether a file has this hash; without one, any file does."""
    return sha256 is None or file_sha256(path) == sha256


def _fetch_all(url: str, file: IO[bytes]) -> None:
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            _fetch(url, file, before)
            return
        except Interrupted as error:
            file.flush()
            if file.tell() <= before:
                kept = f"; {before} bytes are kept, and the next attempt goes on from there" if before else ""
                raise DataError(f"cannot be downloaded ({error}){kept}") from None


def _fetch(url: str, file: IO[bytes], start: int) -> None:
    """One attempt. Raises Interrupted, or DataError where the server refuses."""
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)  # the server sends the whole file again
            length = response.headers.get("Content-Length")
            wanted = int(length) if length is not None else None
            received = 0
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
            file.flush()
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # all of it is there already; the hash will tell
        raise DataError(f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise Interrupted(str(reason) or type(error).__name__) from None
    if wanted is not None and received < wanted:
        raise Interrupted(f"the connection closed after {received} of {wanted} bytes")
