"""How the engine `ray` hands out jobs, with threads in place of a cluster: tests/test_engine_ray.py has real ones."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow
import pytest

from sdft.engines import Continuation, RaySettings, Request, Sampling, ScriptedSettings, TokenLogprobs
from sdft.engines import ray as ray_engine
from sdft.engines.ray import RayEngine, _Replica
from sdft.engines.scripted import ScriptedEngine
from sdft.errors import EngineError, ScoringError
from sdft.models import ModelConfig

NO_MODEL = ModelConfig(name="none")


class Handle:
    """An actor's: `handle.method.remote(…)` does it at once."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = SimpleNamespace(remote=getattr(self._actor, name))
        method.options = lambda **_: method
        return method


class Pool:
    """In the place of Ray Data's pipeline: a thread for each job that a replica may have at once."""

    lost: frozenset[int] = frozenset()
    """Replicas that take jobs and are never heard of again."""

    def __init__(self, engine: RayEngine, model: ModelConfig) -> None:
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        desk = engine._desk
        for number in range(engine.settings.replicas):
            if number in self.lost:
                heard = desk.beat.remote(f"lost {number}", frozenset())
                assert heard
                work: Any = lambda batch: time.sleep(60)  # noqa: E731
            else:
                work = _Replica(engine.settings.inner, model, desk, {}, True)
            for _ in range(engine.jobs_a_replica):
                threading.Thread(target=self._serve, args=(desk, work), daemon=True).start()

    def _serve(self, desk: Any, work: Any) -> None:
        while job := desk.take.remote():
            self.out.put(work(pyarrow.table({"job": [job]})))
        desk.end.remote()  # for the next thread
        self.out.put(None)

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        yield from iter(self.out.get, None)


class ScoringSettings(ScriptedSettings):
    """Texts without a prompt cannot be scored; `late` ones take a while."""

    def open(self, model: ModelConfig) -> ScriptedEngine:
        return ScoringEngine(self)


class ScoringEngine(ScriptedEngine):
    """See ScoringSettings."""

    def logprobs(self, items: Any) -> Iterator[TokenLogprobs]:
        for item in items:
            if not item.prompt:
                raise ScoringError(f"{item.id}: the prompt is empty")
            time.sleep(0.5 if item.prompt == "late" else 0)
            yield from super().logprobs([item])


@pytest.fixture(autouse=True)
def small_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of the package as the engine uses beside the pipeline."""
    strategies = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = lambda *_, **__: None  # type: ignore[attr-defined]
    made = SimpleNamespace(remote=lambda: Handle(ray_engine._Desk()))
    members = {
        "get": lambda value: value,
        "remote": lambda **_: lambda cls: SimpleNamespace(options=lambda **_: made),
        "is_initialized": lambda: True,
        "cluster_resources": dict,
        "get_runtime_context": lambda: SimpleNamespace(get_node_id=lambda: "here", gcs_address="10.0.0.1:6379"),
        "kill": lambda actor: None,
    }
    small = ModuleType("ray")
    small.__dict__.update(members)
    for name, module in {"ray": small, "ray.util": ModuleType("ray.util"), strategies.__name__: strategies}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: True)
    monkeypatch.setattr(ray_engine, "_pipeline", Pool)
    monkeypatch.setattr(ray_engine, "BEAT", 0.05)
    monkeypatch.setattr(ray_engine, "LOOK", 0.1)


def opened(window: int, settings: ScriptedSettings | None = None, replicas: int = 2) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "_window", lambda inner: window)
        return closing(RaySettings(inner=settings or ScriptedSettings(), replicas=replicas).open(NO_MODEL))


def asked(count: int) -> list[Request]:
    return [Request(str(number), f"prompt {number}", seed=number) for number in range(count)]


@pytest.mark.parametrize(("window", "rows"), [(8, 1), (100, 6), (640, 8)])
def test_rows_go_in_jobs_and_come_back_once_each(window: int, rows: int) -> None:
    taken: list[Request] = []
    with opened(window) as engine:
        assert engine.rows_a_job == rows and engine.rows_a_job * engine.jobs_a_replica >= window
        found = []
        for done in engine.generate((taken.append(request) or request for request in asked(1003)), Sampling()):
            found.append(done)
            assert len(taken) - len(found) <= 2 * rows * engine.jobs_a_replica
        plain = list(ScriptedSettings().open(NO_MODEL).generate(asked(1003), Sampling()))
        assert sorted(found, key=lambda done: int(done.id)) == plain
        assert engine.notes() == []


def test_what_a_replica_took_that_is_gone_is_done_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "lost", frozenset({1}))
    monkeypatch.setattr(ray_engine, "SILENCE", 0.3)
    with opened(8) as engine:
        assert sorted(int(done.id) for done in engine.generate(asked(200), Sampling())) == list(range(200))
        assert engine.notes() == ["replicas died and were replaced: 1; the rows they had in hand were done again"]
    monkeypatch.setattr(Pool, "lost", frozenset({0, 1}))
    with pytest.raises(EngineError, match=r"no replica has been heard of for 0\.6 s"):
        RaySettings(inner=ScriptedSettings(), start_timeout=0.6).open(NO_MODEL)


def test_scores_come_in_order_and_few_wait_for_their_turn() -> None:
    taken: list[Continuation] = []
    items = [Continuation(str(n), "late" if n == 0 else "p", f"some words {n}") for n in range(200)]
    with opened(8, ScoringSettings()) as engine:
        stream = engine.logprobs(taken.append(item) or item for item in items)
        assert next(stream).id == "0" and len(taken) <= 2 * 2 * ray_engine.SCORED_AT_ONCE
        assert [scored.id for scored in stream] == [str(n) for n in range(1, 200)]
        with pytest.raises(ScoringError, match="9: the prompt is empty"):
            list(engine.logprobs([Continuation("9", "", "reply")]))
        assert len(list(engine.generate(asked(5), Sampling()))) == 5, "its replica goes on"


def test_another_cluster_than_the_one_joined_is_refused() -> None:
    with pytest.raises(
        EngineError, match=r"has joined the cluster at 10\.0\.0\.1:6379, so not that at 10\.0\.0\.2:7000"
    ):
        RaySettings(inner=ScriptedSettings(), address="10.0.0.2:7000").open(NO_MODEL)


def test_a_folder_is_named_whole_for_workers_elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = ray_engine._anywhere(ModelConfig(name="runs/a", adapter="runs/a"))
    assert (model.name, model.adapter) == (os.path.abspath("runs/a"),) * 2  # noqa: PTH100
    assert ray_engine._anywhere(ModelConfig(name="org/of-the-hub")).name == "org/of-the-hub"
