"""The engine `ray` on a cluster that is there already, of two nodes, of which one dies."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from helpers_replicas import MortalSettings
from sdft.engines import RaySettings, Request, Sampling, ScriptedSettings
from sdft.errors import EngineError
from sdft.models import ModelConfig

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # before ray is imported
ray = pytest.importorskip("ray", reason="ray is not installed: make ray-test")

NO_MODEL = ModelConfig(name="none")


def test_a_node_that_dies_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr("sdft.engines.ray.SILENCE", 6.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        settings = RaySettings(inner=MortalSettings(latency=0.05), replicas=2, address=cluster.address)
        asked = [Request(str(number), f"prompt {number}", seed=number * 7) for number in range(60)]
        calm = list(ScriptedSettings().open(NO_MODEL).generate(asked, Sampling()))
        with closing(settings.open(NO_MODEL)) as engine:
            where = [Request(str(number), "where") for number in range(8)]
            while len({done.text for done in engine.generate(where, Sampling())}) < 2:
                pass  # until both have rows
            found = []
            for done in engine.generate(asked, Sampling()):
                found.append(done)
                if len(found) == 20:
                    cluster.remove_node(other, allow_graceful=False)  # and no other has room for its replica
        assert sorted(found, key=lambda done: int(done.id)) == calm
        assert engine.notes() == ["replicas died and were replaced: 1; the rows they had in hand were done again"]
        assert not ray.is_initialized()
        again = RaySettings(inner=ScriptedSettings(), replicas=1, address=cluster.address)
        with closing(again.open(NO_MODEL)) as engine:  # the cluster goes on, and has its CPU back
            assert list(engine.generate(asked[:1], Sampling())) == calm[:1]
    finally:
        cluster.shutdown()


def test_where_no_cluster_is_it_is_said() -> None:
    with pytest.raises(EngineError, match=r"engine ray: no cluster at 127\.0\.0\.1:1: "):
        RaySettings(address="127.0.0.1:1").open(NO_MODEL)
