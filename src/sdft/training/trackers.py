"""What transformers' integrations with trackers leave open: where TensorBoard's files lie, and where a run ends.

Two trainings follow each other in one process, from folders that are deleted after them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer

TENSORBOARD_DIR = "TENSORBOARD_LOGGING_DIR"
"""The environment variable by which transformers finds the folder for TensorBoard."""


def training_name(out: Path) -> str:
    """What trackers call the training into `out`: `mine-sdft`, for `mine/train/sdft`."""
    *_, run, _, method = ("", "", *out.absolute().parts)
    return f"{run}-{method}"


@contextmanager
def tracked(trainer: Trainer, trackers: Sequence[str], out: Path, fresh: bool) -> Iterator[None]:
    """Train inside. TensorBoard's files of the training into `RUN/train/METHOD` go to `RUN/tensorboard/METHOD`.

    Or, where the environment names a folder, to one of the training's own in it. `fresh`: not going on from a
    checkpoint, so that files of an earlier training in its place go. A run at Weights & Biases that began inside
    ends there.
    """
    if "tensorboard" in trackers:
        _place(trainer, out, fresh)
    if "wandb" not in trackers:
        yield
        return
    import wandb

    ours = wandb.run is None
    try:
        yield
    finally:
        if ours and wandb.run is not None:
            wandb.finish()


def _place(trainer: Trainer, out: Path, fresh: bool) -> None:
    from transformers.integrations.integration_utils import TensorBoardCallback

    named = os.environ.get(TENSORBOARD_DIR)
    folder = Path(named).expanduser() / training_name(out) if named else out.parents[1] / "tensorboard" / out.name
    if fresh and not named and trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)
