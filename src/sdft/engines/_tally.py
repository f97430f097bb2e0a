"""How many requests were sent, counted on disk as they go, so that no kill loses the count."""

from __future__ import annotations

from pathlib import Path
from typing import IO

FIRST, AGAIN, PROBED = b"s", b"r", b"p"


class Tally:
    """A file with one letter for each request: `s` sent, `r` sent again after a fault of the server, `p` a probe.

    `with` opens it for counting on. A letter is written before its request goes out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Tally:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def sent(self, letter: bytes) -> None:
        """Count one request. Raises OSError where the disk is full."""
        if self._file is not None:
            self._file.write(letter)

    def beyond(self, answered: int) -> str | None:
        """In words, the requests beyond the one that each of so many answered rows needs; None where there are none.

        Those lost were in flight when a call was interrupted, and had to be asked once more.
        """
        letters = self.path.read_bytes() if self.path.exists() else b""
        again, probes = letters.count(AGAIN), letters.count(PROBED)
        lost = max(0, len(letters) - again - probes - answered)
        if not again and not lost and not probes:
            return None
        told = (
            f"{len(letters):,} requests for {answered:,} rows: {again:,} sent again after a fault of the server, "
            f"{lost:,} lost in flight when the run was interrupted"
        )
        return f"{told}, {probes:,} to see whether the server answers at all" if probes else told
