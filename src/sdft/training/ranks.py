"""Several processes that train one model together (data parallel), as torchrun and `accelerate launch` start them.

Each process computes; the first, rank 0, decides what is to be done and writes all files.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sdft.errors import RunError

LAUNCHER = "SDFT_LAUNCHER"
"""The variable that tells the processes of `launch` its pid."""
LOOK = 0.5
"""Seconds between two looks at whether the launcher is still there."""


def rank() -> int:
    """This process's number among all that train together; 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agree(names: Sequence[str], on_cpu: bool) -> list[str]:
    """Rank 0's `names`, on every rank. Waits for all of them."""
    if world_size() == 1:
        return list(names)
    from accelerate.state import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=on_cpu)
    said = [list(names)]
    broadcast_object_list(said)
    return said[0]


@contextmanager
def leader_first() -> Iterator[None]:
    """Rank 0 does the block before the others begin it."""
    if world_size() == 1:
        yield
        return
    from accelerate.state import PartialState

    with PartialState().main_process_first():
        yield


def end_with_launcher() -> None:
    """From now on this process ends when the launcher that started it is gone, as by `kill -9`; torchrun's, too.

    Else it would train on unseen, or wait for ever, and hold the run's lock. It ends as if it were killed itself, which
    a run folder survives. Nothing but a look now and then can tell: a launcher of torch's hands no pipe down.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `sdft` with these arguments in `count` processes on this machine; returns the exit code of the first to fail.

    The processes share this terminal. Where one fails, or this process is gone, the others are ended. Raises RunError
    where this process was itself started by a launcher, and KeyboardInterrupt on Ctrl-C, when they have ended.
    """
    import logging
    import signal
    import sys

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if world_size() > 1:
        raise RunError("--num-processes: this is one of several processes already; leave the option to the launcher")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its children speak for themselves
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="sdft",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "sdft", *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code  # as a shell tells of a process that a signal ended
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + error.sigval
    return 0
