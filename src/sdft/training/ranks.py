"""Several processes that train one model together (data parallel), as torchrun and `accelerate launch` start them.

Each process computes; the first, rank 0, decides what is to be done and writes all files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sdft.errors import RunError


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


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `sdft` with these arguments in `count` processes on this machine; returns the exit code of the first to fail.

    The processes share this terminal. Where one fails the others are ended. Raises RunError where this process was
    itself started by a launcher, and KeyboardInterrupt on Ctrl-C, when they have ended.
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
