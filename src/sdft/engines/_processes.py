"""Workers that are processes of this machine: spawned, with a pipe."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdft.models import ModelConfig, pick_device, resolve

if TYPE_CHECKING:
    import multiprocessing
    from multiprocessing import connection


from sdft.engines._replicas import DistributionReplicas, Message, Opens, Worker, WorkerDiedError, serve


class Processes:
    """Workers that are processes here, each with its GPU, or its share of the processor's threads."""

    def __init__(self, settings: Opens, model: ModelConfig, count: int) -> None:
        self.settings, self.model = settings, model
        self.gpus = visible_gpus(model)
        self.threads = max(1, _threads() // count)

    def start(self, number: int) -> Worker:
        """Spawn a process; Ctrl-C in a terminal is not for it: it ends with this one."""
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
        import multiprocessing
        from multiprocessing import resource_tracker

        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=_work, args=(there, self.settings, self.model, environment, self.threads), daemon=True
        )
        resource_tracker.ensure_running()  # it unblocks the signal when it is begun, so not below
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited from the first moment on
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        there.close()  # so that its death ends the pipe
        return _Process(process, here)

    def wait(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        """Those whose pipe has something, or has ended."""
        by_pipe = {worker.pipe: worker for worker in workers if isinstance(worker, _Process)}
        from multiprocessing import connection

        return [by_pipe[pipe] for pipe in by_pipe.keys() & set(connection.wait(by_pipe, seconds))]

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True, eq=False)
class _Process:
    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection[Message, Message]

    def send(self, message: Message) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            raise WorkerDiedError from None

    def receive(self) -> Message:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # OSError: in the middle of a message
            self.process.join()
            raise WorkerDiedError(_ended(self.process.exitcode or 0)) from None

    def stop(self) -> None:
        self.process.kill()  # it holds nothing that is worth a farewell
        self.process.join()
        self.pipe.close()


def _ended(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _work(
    pipe: connection.Connection[Message, Message],
    settings: Opens,
    model: ModelConfig,
    environment: dict[str, str],
    threads: int,
) -> None:
    """The process of one worker."""
    os.environ.update(environment)
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def take() -> None:  # always, so that the sender never waits for an engine that waits for it
        try:
            while True:
                inbox.put(pipe.recv())
        except (EOFError, OSError):  # whoever started this process is gone
            os._exit(0)

    threading.Thread(target=take, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    serve(settings, model, inbox.get, pipe.send)


def visible_gpus(model: ModelConfig) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that the model may use; empty where it uses none."""
    if pick_device(model.device).type != "cuda":
        return []
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(number) for number in range(count)])[:count]


def _threads() -> int:
    """What the user set, else as many as this process has cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_processes(settings: Opens, model: ModelConfig, count: int, window: int) -> DistributionReplicas:
    """As many processes with an engine of these settings. Raises ModelError and EngineError."""
    resolve(model)  # fetched and converted once, and told here where it cannot be
    replicas = DistributionReplicas(Processes(settings, model, count), count, window)
    replicas.start(enough=count)
    return replicas
