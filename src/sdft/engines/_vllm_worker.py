"""What vLLM's workers take on by its option `worker_extension_cls`: they end with the process that opened the engine.

They do not by themselves: vLLM's engine core, a process of its own, goes on waiting for requests of a process that was
killed (vLLM 0.32: `EngineCoreProc` in v1/engine/core.py), and holds the GPU; its workers look out for the core alone
(`WorkerProc.monitor_death_pipe` in v1/executor/multiproc_executor.py).
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from contextlib import suppress
from typing import Self

OPENER = "SDFT_VLLM_OPENER"
"""The variable that tells vLLM's processes the pid of the one that opened the engine."""


class EndsWithOpener:
    """A base of vLLM's worker, from before it loads the model on."""

    def __new__(cls, *_: object, **__: object) -> Self:
        _end_with(int(os.environ[OPENER]))
        return super().__new__(cls)


def _end_with(opener: int) -> None:
    """Have this process end when that one is gone, and the engine core, where that is another."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        return
    core = multiprocessing.parent_process()  # the opener itself, where the worker is a part of the core's process

    def wait() -> None:
        with suppress(ProcessLookupError):  # gone already
            select.select([os.pidfd_open(opener)], [], [])
        if core is not None and core.pid is not None and core.pid != opener:
            with suppress(ProcessLookupError):
                os.kill(core.pid, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
