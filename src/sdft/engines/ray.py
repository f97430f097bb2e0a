"""The engine `ray`: replicas of another engine over a Ray cluster, or over a local one.

Plain actors, and not `ray.data`'s map_batches: that gives rows back a batch at a time and redoes whole blocks after a
death, where an actor that runs an engine takes requests and gives rows one by one. Ray's own restarts and task retries
are off (both are 0 unless asked for): a retried call would ask an engine for rows that had already arrived. The
bookkeeping is that of `_replicas`: what an actor had in hand when it died goes to the others and to its successor.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field

from sdft.engines._replicas import DistributionReplicas, Message, Opens, Replicas, Worker, WorkerDiedError, serve
from sdft.engines.scripted import ScriptedSettings
from sdft.engines.transformers import TransformersSettings
from sdft.errors import EngineError
from sdft.memory import MOST_ROWS
from sdft.models import ModelConfig
from sdft.records import Settings

HELD_BACK = 64
"""Messages that an actor keeps until they are fetched; then its engine waits."""


class RaySettings(Settings):
    """Replicas of another engine, each an actor on a Ray cluster."""

    name: Literal["ray"] = "ray"
    inner: Annotated[TransformersSettings | ScriptedSettings, Field(discriminator="name")] = TransformersSettings()
    """The engine that each replica runs."""
    replicas: int = Field(default=2, ge=1)
    address: str | None = None
    """An existing cluster: `auto`, or `ray://host:port`. None: one on this machine, while the engine is open."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that each replica asks of the cluster."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that each replica asks of the cluster. `drift` opens two models: 0.5 lets both stand on one."""
    start_timeout: float = Field(default=600, gt=0)
    """Seconds in which a first replica has to be ready."""

    def missing(self) -> list[str]:
        """What is not installed."""
        return [] if find_spec("ray") else ["ray is not installed: pip install -e '.[ray]'"]

    def open(self, model: ModelConfig) -> Replicas:
        """Start the replicas; as soon as one is ready, it returns. Raises ModelError and EngineError."""
        for what in self.missing():
            raise EngineError(f"engine ray: {what}")
        window = _window(self.inner)
        kind = DistributionReplicas if isinstance(self.inner, TransformersSettings) else Replicas
        replicas = kind(Actors(self, model), self.replicas, window)
        replicas.start(enough=1)
        return replicas


def _window(inner: TransformersSettings | ScriptedSettings) -> int:
    """Requests that a worker has at once. What device it has is not known here: as many as any would take.

    A worker waits for requests until its batch is full, so that fewer than a batch would wait for ever.
    """
    if not isinstance(inner, TransformersSettings):
        return 8
    if inner.max_batch_size != "auto":
        return inner.window
    return max(inner.model_copy(update={"max_batch_size": rows}).window for rows in MOST_ROWS.values())


class Actors:
    """Workers that are Ray actors."""

    def __init__(self, settings: RaySettings, model: ModelConfig) -> None:
        import ray

        self.settings, self.model = settings, model
        self.is_ours = not ray.is_initialized()
        if self.is_ours:
            try:
                if settings.address is None:
                    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone unless asked to
                    cpus = max(os.cpu_count() or 1, round(2 * settings.replicas * settings.num_cpus + 0.5))
                    # twice what the replicas ask for: drift opens two engines; it is a count, and binds no core
                    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
                else:
                    ray.init(settings.address, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise EngineError(f"engine ray: no cluster at {settings.address}: {error}") from None
        self.actor = ray.remote(concurrency_groups={"in": 1, "out": 1})(_Actor).options(
            num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_restarts=0, max_task_retries=0
        )

    def start(self, number: int) -> Worker:
        """Ask the cluster for an actor; it comes when there is room."""
        return _RayWorker(self.actor.remote(self.settings.inner, self.model))

    def wait(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        """Those that have messages here, or one to fetch."""
        import ray

        mine = [worker for worker in workers if isinstance(worker, _RayWorker)]
        if here := [worker for worker in mine if worker.messages]:
            return list(here)
        by_ref = {worker.fetched: worker for worker in mine}
        patience = self.settings.start_timeout if not any(worker.has_spoken for worker in mine) else None
        ready, _ = ray.wait(list(by_ref), timeout=patience if seconds is None else seconds, fetch_local=False)
        if not ready and seconds is None:
            there, free = ray.cluster_resources(), ray.available_resources()
            told = ", ".join(f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
            raise EngineError(
                f"engine ray: no replica was ready within {patience:g} s; each asks for {self.settings.num_cpus:g} "
                f"CPUs and {self.settings.num_gpus:g} GPUs, and the cluster has {told} free: lower num_cpus or num_gpus"
            )
        return [by_ref[ref] for ref in ready]

    def close(self) -> None:
        """End the cluster where it was begun here."""
        import ray

        if self.is_ours:
            ray.shutdown()


@dataclass(slots=True, eq=False)
class _RayWorker:
    actor: Any
    messages: deque[Message] = field(default_factory=deque)
    fetched: Any = None
    """The reference of the messages that are being fetched."""
    has_spoken: bool = False

    def __post_init__(self) -> None:
        self.fetched = self.actor.take.options(concurrency_group="out").remote()

    def send(self, message: Message) -> None:
        # One call after the other: a group of threads that is one thread keeps their order. A death shows when rows
        # are fetched.
        self.actor.put.options(concurrency_group="in").remote(message)

    def receive(self) -> Message:
        import ray

        if not self.messages:
            try:
                self.messages.extend(ray.get(self.fetched))
            except ray.exceptions.RayActorError as error:
                raise WorkerDiedError(f"as Ray tells: {str(error).strip().splitlines()[-1]}") from None
            self.has_spoken = True
            self.fetched = self.actor.take.options(concurrency_group="out").remote()
        return self.messages.popleft()

    def stop(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self.actor)


class _Actor:
    """A thread with the engine, and a box of messages each way."""

    def __init__(self, settings: Opens, model: ModelConfig) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.outbox: queue.Queue[Message] = queue.Queue(HELD_BACK)
        work = (settings, model, self.inbox.get, self.outbox.put)
        threading.Thread(target=serve, args=work, daemon=True).start()

    def put(self, message: Message) -> None:
        self.inbox.put(message)

    def take(self) -> list[Message]:
        """What there is; waits for the first."""
        messages = [self.outbox.get()]
        while not self.outbox.empty():
            messages.append(self.outbox.get())
        return messages
