"""The engine `ray`: replicas of another engine over a Ray cluster, or over a local one, through Ray Data.

    distill: {engine: {name: ray, replicas: 8, inner: {name: vllm}, address: auto}}

One pipeline of Ray Data runs for as long as the engine is open, so that each model is loaded once:

    desk → read → map over a pool of replicas → this process

A job is a few requests. Jobs are put on the desk while fewer are under way than the replicas can hold, so that the
request iterator is never read far ahead, and come back as they are done, in any order. Ray Data places the replicas,
puts a new one in the place of one that died, and gives it the jobs that the dead one had in hand. Since a reply depends
on its own prompt and seed alone, the replies are those of one engine, whatever died; a job that comes back a second
time is dropped.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from sdft.engines._replicas import SCORED_AT_ONCE
from sdft.engines.base import Continuation, DistributionEngine, Engine, NotedEngine, Request, Sampling, TokenLogprobs
from sdft.engines.scripted import ScriptedSettings
from sdft.engines.transformers import TransformersSettings
from sdft.engines.vllm import VLLMSettings
from sdft.errors import EngineError, ScoringError, SdftError
from sdft.memory import MOST_ROWS
from sdft.models import ModelConfig
from sdft.records import Completion, Settings

if TYPE_CHECKING:
    import torch

MOST_ROWS_A_JOB = 8
"""Of a replica that holds hundreds: each job costs Ray some milliseconds."""
JOBS_A_REPLICA = 16
"""At least, where a replica holds as many rows: a job is done when its last row is."""
GRACE = 0.2
"""Seconds that a replica with rows in hand waits for more; without any it finishes those and begins anew."""
MAX_DEATHS = 3
"""Of replicas with the same job in hand, or of each while no job is done: no accident, and Ray would go on for ever."""
BEAT = 2.0
"""Seconds between two signs of life of a replica."""
SILENCE = 30.0
"""Seconds without one, after which it counts as gone."""
LOOK = 5.0
"""Seconds between two looks at which replicas are gone."""
TOLD = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "SDFT_CACHE")
"""Variables of this process that replicas take where they have none of their own."""
CONNECTING = 10.0
"""Seconds in which a cluster has to be found."""
ENDING = 20.0
"""Seconds that the pipeline gets to end by itself."""

Kind = Literal["hello", "generate", "logprobs", "distributions"]
Inner = TransformersSettings | VLLMSettings | ScriptedSettings


class RaySettings(Settings):
    """Replicas of another engine on a Ray cluster, fed through Ray Data."""

    name: Literal["ray"] = "ray"
    inner: Annotated[Inner, Field(discriminator="name")] = TransformersSettings()
    """The engine that each replica runs."""
    replicas: int = Field(default=2, ge=1)
    address: str | None = Field(default=None, pattern=r"^(auto|[^:/]+:\d+)$")
    """An existing cluster, on one of whose machines this runs: `auto`, or `host:port`. None: one on this machine, while
    the engine is open."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that each replica asks of the cluster."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs that each replica asks of the cluster. None: vLLM's `tensor_parallel_size`; with `transformers` 1 where the
    cluster has GPUs. `drift` opens two models: 0.5 lets both stand on one."""
    start_timeout: float = Field(default=600, gt=0)
    """Seconds in which a first replica has to be ready."""

    @field_validator("inner")
    @classmethod
    def _one_each(cls, inner: Inner) -> Inner:
        if isinstance(inner, TransformersSettings) and inner.replicas not in ("auto", 1):
            raise ValueError("a replica on Ray is one engine: leave out inner.replicas, and raise replicas")
        return inner

    def gpus(self, model: ModelConfig, there: bool) -> float:
        """GPUs of each replica; `there`: whether the cluster has any."""
        if self.num_gpus is not None:
            return self.num_gpus
        if isinstance(self.inner, VLLMSettings):
            return self.inner.tensor_parallel_size
        return float(there and isinstance(self.inner, TransformersSettings) and model.device in ("auto", "cuda"))

    def missing(self) -> list[str]:
        """What is not installed."""
        there = find_spec("ray") and find_spec("pyarrow")
        return [] if there else ["ray is not installed: pip install 'ray[data]>=2.60,<2.64'"]

    def open(self, model: ModelConfig) -> RayEngine:
        """Start the replicas; as soon as one is ready, it returns. Raises ModelError and EngineError."""
        for what in self.missing():
            raise EngineError(f"engine ray: {what}")
        kind = RayDistributionEngine if isinstance(self.inner, TransformersSettings) else RayEngine
        return kind(self, _anywhere(model))


def _anywhere(model: ModelConfig) -> ModelConfig:
    """With whole paths: workers run in another folder."""
    paths = {"name": model.name, "adapter": model.adapter}
    return model.model_copy(
        update={key: str(Path(path).absolute()) for key, path in paths.items() if path and Path(path).exists()}
    )


def _window(inner: Inner) -> int:
    """Rows that a replica is given at once: more than it works on, so that it need not wait for the next.

    What device it has is not known here: as many as any would take.
    """
    if isinstance(inner, VLLMSettings):
        return inner.window
    if isinstance(inner, ScriptedSettings):
        return 8
    if inner.max_batch_size != "auto":
        return inner.window
    return max(inner.model_copy(update={"max_batch_size": rows}).window for rows in MOST_ROWS.values())


@dataclass(frozen=True, slots=True)
class Job:
    """What a replica is asked for."""

    number: int
    kind: Kind
    items: tuple[Any, ...] = ()
    """Requests, or continuations."""
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a job."""

    number: int
    results: list[Any]
    """One for each item, in any order where it was to generate."""
    notes: tuple[str, ...] = ()
    """What the engine has to say of itself."""
    error: SdftError | None = None
    bug: str | None = None
    """A traceback."""


# Beside the stages


class RayEngine:
    """See RaySettings."""

    def __init__(self, settings: RaySettings, model: ModelConfig) -> None:
        self.settings = settings
        self.is_ours = _join(settings)
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        window = _window(settings.inner)
        self.rows_a_job = max(1, min(MOST_ROWS_A_JOB, window // JOBS_A_REPLICA))
        self.jobs_a_replica = -(-window // self.rows_a_job)
        self._count = 0
        self._flying: dict[int, Job] = {}
        self._lost: dict[int, int] = {}
        """How many replicas were gone when a job was last sent."""
        self._deaths: Counter[int] = Counter()
        """How many replicas are gone that had a job in hand."""
        self._gone: set[str] = set()
        self._looked = 0.0
        self._notes: set[str] = set()
        self._started = 0
        self._started_then = 0
        """Replicas that had been started, those in a dead one's place included; when a job was last done."""
        self._done: queue.SimpleQueue[Done | Exception] = queue.SimpleQueue()
        self.gpus = settings.gpus(model, ray.cluster_resources().get("GPU", 0) >= 1)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(concurrency_groups={"in": 1, "out": 1})(_Desk)
        self._desk: Any = desk.options(num_cpus=0, scheduling_strategy=here).remote()
        self._reader = threading.Thread(target=self._read, args=(_pipeline(self, model),), daemon=True)
        self._reader.start()
        try:
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the replicas, whatever they are doing, and the cluster where it was begun here."""
        import ray

        if not ray.is_initialized():
            return
        self._desk.end.remote()
        self._reader.join(ENDING)
        ray.kill(self._desk)  # replicas that are still there miss it
        if self.is_ours:
            ray.shutdown()

    def notes(self) -> list[str]:
        """What a person should know of how it went."""
        told, asked = sorted(self._notes), self.settings.replicas
        if died := max(self._started - asked, len(self._gone)):
            told.append(f"replicas died and were replaced: {died}; the rows they had in hand were done again")
        if 0 < self._started < asked:
            told.append(f"only {self._started} of {asked} replicas had been started by the end")
        return told

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion for each request as its job is done. `requests` is read as replicas become free.

        Raises EngineError where replicas die again and again, and what an engine raises.
        """
        source = iter(requests)
        parts = iter(lambda: tuple(islice(source, self.rows_a_job)), ())
        for _, results in self._answers("generate", parts, sampling, self.jobs_a_replica):
            yield from results

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield the natural log-probabilities of each reply's tokens, in order."""
        source = iter(items)
        return self._in_order("logprobs", iter(lambda: tuple(islice(source, SCORED_AT_ONCE)), ()))

    def _in_order(self, kind: Kind, parts: Iterator[tuple[Continuation, ...]]) -> Iterator[Any]:
        """Results in the items' order. Two jobs a replica: one is done while the next is on its way."""
        early: dict[int, list[Any]] = {}
        following = self._count
        for number, results in self._answers(kind, parts, None, 2, early):
            early[number] = results
            while following in early:
                yield from early.pop(following)
                following += 1

    def _answers(
        self,
        kind: Kind,
        parts: Iterator[tuple[Any, ...]],
        sampling: Sampling | None,
        jobs: int,
        held: Sized = (),
    ) -> Iterator[tuple[int, list[Any]]]:
        """Each job's number and results, as they come; `jobs` of them at once for each replica, less those `held`."""
        self._flying, self._lost = {}, {}  # of a call that was given up: what still comes of it is dropped
        is_read = False
        while True:
            while not is_read and len(self._flying) + len(held) < jobs * self.settings.replicas:
                if part := next(parts, None):
                    self._put(kind, part, sampling)
                else:
                    is_read = True
            if not self._flying:
                self._look()
                return
            done = self._next(BEAT)
            if done is not None:
                yield done.number, done.results
            if time.monotonic() - self._looked > LOOK:
                self._look()

    def _put(self, kind: Kind, items: tuple[Any, ...] = (), sampling: Sampling | None = None) -> None:
        job = Job(self._count, kind, items, sampling)
        self._count += 1
        self._flying[job.number] = job
        self._send(job)

    def _send(self, job: Job) -> None:
        self._lost[job.number] = len(self._gone)
        self._desk.put.options(concurrency_group="in").remote(pickle.dumps(job))

    def _next(self, seconds: float) -> Done | None:
        """A job that is done for the first time; None where none comes in so many seconds. Raises as `generate`."""
        try:
            done = self._done.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(done, Exception):
            raise _stopped(done) from done
        if done.error is not None:
            raise done.error
        if done.bug is not None:
            raise RuntimeError(f"a replica failed:\n{done.bug}")
        self._notes.update(done.notes)
        self._started_then = self._started
        self._lost.pop(done.number, None)
        return done if self._flying.pop(done.number, None) else None

    def _look(self) -> None:
        """Send again what nobody has in hand since a replica is gone: it may find no room to come back.

        Raises EngineError where replicas die again and again, or none is left.
        """
        import ray

        self._looked = time.monotonic()
        heard: dict[str, tuple[float, frozenset[int]]] = ray.get(self._desk.life.remote())
        self._started = len(heard)
        if heard and min(age for age, _ in heard.values()) > self.settings.start_timeout:
            raise EngineError(
                f"engine ray: no replica has been heard of for {self.settings.start_timeout:g} s; finished rows are "
                "kept, and the same command goes on"
            )
        gone = {name for name, (age, _) in heard.items() if age > SILENCE}
        for name in gone - self._gone:
            self._deaths.update(heard[name][1] & self._flying.keys())
        self._gone = gone
        in_hand = frozenset[int]().union(*(jobs for name, (_, jobs) in heard.items() if name not in gone))
        for number, job in self._flying.items():
            if number not in in_hand and self._lost[number] < len(gone):
                self._send(job)
        suspects = [job for number, job in self._flying.items() if self._deaths[number] >= MAX_DEATHS]
        if not suspects and self._started <= self._started_then + MAX_DEATHS * self.settings.replicas:
            return
        rows = [item.id for job in suspects or self._flying.values() for item in job.items]
        where = f"with row '{rows[0]}' and others in hand" if rows else "before they are ready"
        raise EngineError(
            f"engine ray: replicas die again and again {where}; finished rows are kept, and the same command goes on; "
            "where it is memory that is short, take fewer replicas or a smaller max_batch_size"
        )

    def _wait_for_one(self) -> None:
        """Return when a replica is ready. Raises what kept it from it, and EngineError."""
        import ray

        until = time.monotonic() + self.settings.start_timeout
        self._put("hello")
        while self._next(BEAT / 2) is None:
            self._look()
            if time.monotonic() > until:
                there, free = ray.cluster_resources(), ray.available_resources()
                told = ", ".join(f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
                raise EngineError(
                    f"engine ray: no replica was ready within {self.settings.start_timeout:g} s; each asks for "
                    f"{self.settings.num_cpus:g} CPUs and {self.gpus:g} GPUs, and the cluster has {told} "
                    "free: lower num_cpus or num_gpus"
                )

    def _read(self, dataset: Any) -> None:
        """In a thread: what comes out of the pipeline."""
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for done in batch["done"].to_pylist():
                    self._done.put(pickle.loads(done))
        except Exception as error:  # of Ray, of many kinds; it ends so when the desk is gone, too
            self._done.put(error)


class RayDistributionEngine(RayEngine):
    """Replicas that also give whole next-token distributions."""

    def distributions(self, items: Iterable[Continuation]) -> Iterator[torch.Tensor]:
        """Yield log-probabilities, float32 of shape (reply tokens, vocabulary), for each item in order."""
        import torch

        for found in self._in_order("distributions", ((item,) for item in items)):
            yield torch.from_numpy(found)


def _join(settings: RaySettings) -> bool:
    """Join a cluster, where this process has not; whether it was begun here. Raises EngineError."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # what Ray Data still does at the end starts no cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone unless asked to
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of how Ray Data itself starts its actors
    import ray

    if ray.is_initialized():
        joined, asked = ray.get_runtime_context().gcs_address, settings.address
        if asked not in (None, "auto", joined) and asked.rpartition(":")[2] != joined.rpartition(":")[2]:
            raise EngineError(f"engine ray: this process has joined the cluster at {joined}, so not that at {asked}")
        return False
    try:
        if settings.address is None:
            cpus = max(os.cpu_count() or 1, round(2 * settings.replicas * settings.num_cpus + 0.5))
            # twice what the replicas ask for: drift opens two engines; it is a count, and binds no core
            ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        else:
            if settings.address != "auto":  # Ray itself tries for minutes
                host, _, port = settings.address.rpartition(":")
                socket.create_connection((host, int(port)), CONNECTING).close()
            ray.init(settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(f"engine ray: no cluster at {settings.address}: {error}") from None
    return True


def _pipeline(engine: RayEngine, model: ModelConfig) -> Any:
    """The dataset that is done jobs."""
    from ray.data import ActorPoolStrategy, read_datasource

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say comes as an error here
    settings, calls = engine.settings, engine.jobs_a_replica
    inner = settings.inner
    if isinstance(inner, TransformersSettings):
        inner = inner.model_copy(update={"replicas": 1})  # however many GPUs it sees
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    pool = ActorPoolStrategy(
        size=settings.replicas, max_tasks_in_flight_per_actor=calls, max_concurrent_calls_per_actor=calls
    )
    jobs = read_datasource(_source(engine._desk), override_num_blocks=1, num_cpus=0)
    dataset = jobs.map_batches(
        _Replica,
        fn_constructor_args=(inner, model, engine._desk, told, engine.gpus > 0),
        compute=pool,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=settings.num_cpus,
        num_gpus=engine.gpus,
    )
    # Each job goes on by itself, when it is there: a block would wait for 128 MiB.
    dataset.context.target_max_block_size = dataset.context.target_min_block_size = 1
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


def _source(desk: Any) -> Any:
    """Where Ray Data reads jobs: once, on this machine, as they are put on the desk."""
    import pyarrow
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def jobs() -> Iterator[Any]:
        ray.get(desk.begin.remote())
        while job := ray.get(desk.take.options(concurrency_group="out").remote()):
            yield pyarrow.table({"job": [job]})

    class Jobs(Datasource):  # type: ignore[misc]
        supports_distributed_reads = False

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(jobs, BlockMetadata(None, None, None, None))]

    return Jobs()


def _stopped(error: Exception) -> EngineError:
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    return EngineError(
        f"engine ray: the cluster does not go on ({last}); finished rows are kept, and the same command goes on"
    )


# On the cluster


class _Desk:
    """An actor beside this process: jobs that wait to be read, and what is heard of the replicas."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.heard: dict[str, tuple[float, frozenset[int]]] = {}
        self.is_read = self.is_over = False

    def begin(self) -> None:
        """Raises RuntimeError the second time: a job that was taken is not here any more."""
        if self.is_read:
            raise RuntimeError("what reads the jobs has died")
        self.is_read = True

    def put(self, job: bytes) -> None:
        self.jobs.put(job)

    def take(self) -> bytes:
        """The next job; waits for it. Empty where none will come."""
        return self.jobs.get()

    def end(self) -> None:
        self.is_over = True
        self.jobs.put(b"")

    def beat(self, replica: str, jobs: frozenset[int]) -> bool:
        """A sign of life, with the jobs in hand. Whether it is wanted any longer."""
        self.heard[replica] = time.monotonic(), jobs
        return not self.is_over

    def life(self) -> dict[str, tuple[float, frozenset[int]]]:
        """Of each replica that was ever started, the seconds since it was heard of, and the jobs it had in hand."""
        now = time.monotonic()
        return {name: (now - then, jobs) for name, (then, jobs) in self.heard.items()}


@dataclass(slots=True, eq=False)
class _Call:
    """A job in a replica, and what waits for it."""

    job: Job
    results: list[Any] = field(default_factory=list)
    answer: queue.SimpleQueue[Done] = field(default_factory=queue.SimpleQueue)


class _Replica:
    """One of the pool: an engine in a thread of its own, to which several calls at once give jobs."""

    def __init__(self, settings: Inner, model: ModelConfig, desk: Any, told: dict[str, str], on_gpu: bool) -> None:
        import ray

        for variable, value in told.items():
            os.environ.setdefault(variable, value)
        if not on_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides none
        self.inbox: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self.hand: set[_Call] = set()
        """Taken, and not yet answered."""
        name = uuid.uuid4().hex
        ray.get(desk.beat.remote(name, frozenset()))
        threading.Thread(target=self._live, args=(desk, name), daemon=True).start()
        is_open = threading.Event()
        threading.Thread(target=self._work, args=(settings, model, is_open), daemon=True).start()
        is_open.wait()

    def __call__(self, batch: Any) -> Any:
        """A table with one job → one with what became of it."""
        import pyarrow

        [job] = batch["job"].to_pylist()
        call = _Call(pickle.loads(job))
        self.inbox.put(call)
        return pyarrow.table({"done": [pickle.dumps(call.answer.get())]})

    def _work(self, settings: Inner, model: ModelConfig, is_open: threading.Event) -> None:
        """Do jobs until the engine fails; then each job fails as it did."""
        error: SdftError | None = None
        bug: str | None = None
        try:
            engine = settings.open(model)
            is_open.set()
            call = self._take(None)
            while call is not None:
                call = self._do(engine, call) or self._take(None)
        except SdftError as raised:
            error = raised
        except Exception:
            bug = traceback.format_exc()
        is_open.set()
        while True:
            while self.hand:
                call = self.hand.pop()
                call.answer.put(Done(call.job.number, [], error=error, bug=bug))
            self._take(None)

    def _live(self, desk: Any, name: str) -> None:
        """Tell the desk again and again of this replica; where it is over, all calls are, and where the desk is gone,
        so is what this works for."""
        import ray

        try:
            while ray.get(desk.beat.remote(name, frozenset(call.job.number for call in tuple(self.hand)))):
                time.sleep(BEAT)
        except Exception:
            os._exit(0)
        while True:
            self._take(0)
            for call in tuple(self.hand):
                call.answer.put(Done(call.job.number, []))
            time.sleep(BEAT / 10)

    def _take(self, seconds: float | None) -> _Call | None:
        """The next call; None where none comes in so many seconds."""
        try:
            call = self.inbox.get(timeout=seconds)
        except queue.Empty:
            return None
        self.hand.add(call)
        return call

    def _do(self, engine: Engine, call: _Call) -> _Call | None:
        """Do a call, and those that can be done together with it; one that was taken and cannot is returned."""
        if call.job.kind == "generate":
            return self._generate(engine, call)
        if call.job.kind == "logprobs":
            try:
                call.results.extend(engine.logprobs(call.job.items))
            except ScoringError as error:  # of these texts; the engine goes on
                self._finish(engine, call, error)
                return None
        elif call.job.kind == "distributions":
            assert isinstance(engine, DistributionEngine)
            call.results.extend(found.cpu().numpy() for found in engine.distributions(call.job.items))
        self._finish(engine, call)
        return None

    def _generate(self, engine: Engine, first: _Call) -> _Call | None:
        sampling, owners = first.job.sampling, dict[str, _Call]()
        following: _Call | None = first

        def requests() -> Iterator[Request]:
            nonlocal following
            while following is not None:
                job, ids = following.job, {request.id for request in following.job.items}
                if job.kind != "generate" or job.sampling != sampling or owners.keys() & ids:
                    return
                owners.update(dict.fromkeys(ids, following))
                yield from job.items
                following = self._take(GRACE)

        assert sampling is not None
        for completion in engine.generate(requests(), sampling):
            call = owners.pop(completion.id)
            call.results.append(completion)
            if len(call.results) == len(call.job.items):
                self._finish(engine, call)
        return following

    def _finish(self, engine: Engine, call: _Call, error: SdftError | None = None) -> None:
        self.hand.remove(call)
        notes = engine.notes() if isinstance(engine, NotedEngine) else []
        call.answer.put(Done(call.job.number, call.results, tuple(notes), error))
