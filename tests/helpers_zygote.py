"""A process that has imported everything and forks a child for each run asked for: quick to start, safe to kill.

Reads JSON lines {"arguments": […], "log": path, "clock": bool, "vllm": seconds or null, "dies": […] or null}: the
command line's arguments; how long a step of the small vLLM takes where that is wanted, for which the child gets a
session of its own; and the arguments of `die_in` where the child shall kill itself. Answers {"pid": n} and, when that
child has ended, {"status": n}.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers_vllm_package import FakeLLM, modules


def jump_back() -> None:
    """From now on each look at the wall clock is an hour before the last."""
    start, hours = time.time(), itertools.count(1)
    time.time = lambda: start - 3600.0 * next(hours)
    time.time_ns = lambda: int(time.time() * 1e9)


def die_in(marker: str, delay: float | None) -> None:
    """SIGKILL this process in the stage with this marker, once the marker says that it was begun.

    `delay`: so many seconds after the stage's first opening of a file to write it, at 0 instead of it. At the latest,
    and with None, where the stage's files are whole and the marker is to say that it is finished.
    """
    folder = str(Path(marker).parents[1]) + os.sep
    begun = opened = False

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def look(event: str, arguments: tuple[Any, ...]) -> None:  # called before the thing itself is done
        nonlocal begun, opened
        if event == "os.rename" and os.fspath(arguments[1]) == marker:
            if begun:
                die()
            begun = True
        elif event == "open" and begun and not opened and delay is not None:
            path, mode, _ = arguments
            if isinstance(path, str) and path.startswith(folder) and mode and set(mode) & set("wax+"):
                opened = True
                if delay == 0:
                    die()
                timer = threading.Timer(delay, die)
                timer.daemon = True
                timer.start()

    sys.addaudithook(look)


def work(arguments: list[str], log: str, clock: bool, vllm: float | None, dies: tuple[str, float | None] | None) -> int:
    """The exit code that the command line gives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from sdft.cli import main as command_line

    if clock:
        jump_back()
    if vllm is not None:
        os.setsid()
        FakeLLM.seconds, FakeLLM.apart = vllm, True
        sys.modules.update(modules())
    if dies is not None:
        die_in(*dies)
    sys.argv = ["sdft", *arguments]
    try:
        command_line()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


def main() -> None:
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401
    from matplotlib.figure import Figure  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401

    import sdft.cli
    import sdft.engines.transformers
    import sdft.pipeline
    import sdft.stages.train
    import sdft.training._trainer

    with suppress(ImportError):  # an extra
        import sdft.engines._servers  # noqa: F401
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(work(**asked))
        sys.stdout.write(json.dumps({"pid": pid}) + "\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
