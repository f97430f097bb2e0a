"""An engine that tells where it runs and dies as told, and what looks at the processes that a test leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdft.engines import Request, Sampling, ScriptedSettings
from sdft.engines.scripted import ScriptedEngine
from sdft.models import ModelConfig
from sdft.records import Completion


class MortalSettings(ScriptedSettings):
    """Its process dies, as by the system, where a prompt is `die`, or before it is ready."""

    stillborn: bool = False

    def open(self, model: ModelConfig) -> ScriptedEngine:
        if self.stillborn:
            os._exit(7)
        return MortalEngine(self)


class MortalEngine(ScriptedEngine):
    """See MortalSettings. To the prompt `where` it tells its pid, its GPUs and threads."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        import torch

        for request in requests:
            if request.prompt == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            [done] = super().generate([request], sampling)
            where = f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {torch.get_num_threads()}"
            yield done.model_copy(update={"text": where}) if request.prompt == "where" else done


def members(session: int) -> list[int]:
    """Pids of the living processes of a session, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (path / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == session and state != "Z":
            found.append(int(path.name))
    return found


def wait_until_gone(session: int, seconds: float) -> list[int]:
    """Waits for a session to end; the pids that are still there."""
    end = time.monotonic() + seconds
    while (left := members(session)) and time.monotonic() < end:
        time.sleep(0.1)
    return left
