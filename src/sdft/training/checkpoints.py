"""Checkpoints that are whole or not there.

The Trainer writes a checkpoint file by file, so a killed process leaves half of one. A marker that is written last
tells a whole checkpoint from a torn one; older checkpoints go only when the newer one is whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sdft.rundir import read_json, write_json

MARKER = "complete.json"
INPUTS = "inputs.json"


def seal(checkpoint: Path, progress: dict[str, Any]) -> None:
    """Mark a checkpoint as whole, with what was spent so far, and delete the older ones."""
    write_json(checkpoint / MARKER, progress)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def claim(folder: Path, inputs: str) -> tuple[Path, dict[str, Any]] | None:
    """Drop torn checkpoints and those of other inputs; return the last whole one with its progress, or None."""
    known = folder / INPUTS
    if not known.exists() or read_json(known) != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(known, inputs)
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    whole = [path for path in found if (path / MARKER).is_file()]
    for path in found:
        if path not in whole[-1:]:
            shutil.rmtree(path)
    return (whole[-1], read_json(whole[-1] / MARKER)) if whole else None
