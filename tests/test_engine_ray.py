"""The engine `ray`, on a local cluster of two workers."""

from __future__ import annotations

import os
import signal
from contextlib import closing

import pytest

from helpers_pipeline import scripted_recipe
from sdft.engines import RaySettings, Request, Sampling, ScriptedSettings
from sdft.engines.ray import Actors
from sdft.errors import EngineError
from sdft.models import ModelConfig
from sdft.order import plan
from sdft.recipe import load_recipe

NO_MODEL = ModelConfig(name="none")


def test_a_worker_killed_in_the_middle_costs_no_row() -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: make ray-test")
    settings = RaySettings(inner=ScriptedSettings(latency=0.03), replicas=2)
    asked = [Request(str(number), f"prompt {number}", seed=number * 7) for number in range(80)]
    calm = list(ScriptedSettings().open(NO_MODEL).generate(asked, Sampling()))
    taken: list[str] = []

    def stream():  # type: ignore[no-untyped-def]
        for request in asked:
            taken.append(request.id)
            yield request

    with closing(settings.open(NO_MODEL)) as engine:
        workers = [place.worker for place in engine._places]
        pid = lambda worker: ray.get(worker.actor.__ray_call__.remote(lambda actor: os.getpid()))  # noqa: E731
        first = workers[0]
        target = pid(first)
        found = []
        for done in engine.generate(stream(), Sampling()):
            found.append(done)
            assert len(taken) - len(found) < 2 * engine.window
            if len(found) == 15:
                os.kill(target, signal.SIGKILL)
        assert sorted(found, key=lambda done: int(done.id)) == calm
        assert engine.notes() == ["replicas died and were replaced: 1; the rows they had in hand were done again"]
    assert not ray.is_initialized()


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdft.engines.ray.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="ray is not installed: pip install"):
        RaySettings().open(NO_MODEL)


def test_a_run_goes_on_over_ray_and_without(tmp_path) -> None:  # type: ignore[no-untyped-def]
    plain = scripted_recipe(tmp_path)
    over = plain | {"distill": plain["distill"] | {"engine": {"name": "ray", "inner": plain["distill"]["engine"]}}}
    assert [s.inputs for s in plan(load_recipe(plain))] == [s.inputs for s in plan(load_recipe(over))]
    assert Actors.__doc__
