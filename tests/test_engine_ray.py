"""The engine `ray`, on a local cluster of two workers: as one engine of their kind, whatever dies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sdft
from helpers_models import WORDS, save_tiny_model
from helpers_pipeline import contents, scripted_recipe
from helpers_replicas import MortalSettings
from sdft.engines import Continuation, RaySettings, Request, Sampling, ScriptedSettings, TransformersSettings
from sdft.engines.ray import RayDistributionEngine
from sdft.errors import EngineError, ModelError
from sdft.models import ModelConfig

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # before ray is imported
ray = pytest.importorskip("ray", reason="ray is not installed: make ray-test")

SAMPLED = Sampling(temperature=0.9, top_p=0.8, top_k=40, max_new_tokens=24)
NO_MODEL = ModelConfig(name="none")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One that is here already: engines join it, and leave it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # its workers import what is in tests/, too
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = save_tiny_model(tmp_path_factory.mktemp("llama") / "model")
    return ModelConfig(name=str(folder), device="cpu", dtype="float32")


def prompts(count: int) -> list[Request]:
    rng = random.Random(0)
    return [
        Request(str(n), " ".join(rng.choices(WORDS, k=rng.randint(1, 60))), rng.randrange(2**62)) for n in range(count)
    ]


def by_id(found: list[Any]) -> list[Any]:
    return sorted(found, key=lambda item: int(item.id))


def test_a_worker_killed_in_the_middle_costs_no_row(cluster: None) -> None:
    asked = [Request(str(number), f"prompt {number}", seed=number * 7) for number in range(60)]
    calm = list(ScriptedSettings().open(NO_MODEL).generate(asked, Sampling()))
    taken: list[str] = []

    def stream() -> Iterator[Request]:
        for request in asked:
            taken.append(request.id)
            yield request

    with closing(RaySettings(inner=MortalSettings(latency=0.03), replicas=2).open(NO_MODEL)) as engine:
        [where] = engine.generate([Request("0", "where")], Sampling())
        found = []
        for done in engine.generate(stream(), Sampling()):
            found.append(done)
            assert len(taken) - len(found) <= 2 * engine.rows_a_job * engine.jobs_a_replica, "read too far ahead"
            if len(found) == 15:
                os.kill(int(where.text.split()[0]), signal.SIGKILL)
        assert by_id(found) == calm
        assert engine.notes() == ["replicas died and were replaced: 1; the rows they had in hand were done again"]
    assert ray.is_initialized()


def test_with_transformers_in_it_all_is_as_with_one(cluster: None, llama: ModelConfig) -> None:
    inner = TransformersSettings(max_batch_size=32)
    texts = [Continuation(str(n), f"the cat {n}", f"sat on mat {n}" if n % 3 else "") for n in range(20)]
    with closing(inner.open(llama)) as one:
        replies, scores = by_id(list(one.generate(prompts(30), SAMPLED))), list(one.logprobs(texts))
        whole = list(one.distributions(texts[:5]))
        greedy = by_id(list(one.generate(prompts(6), Sampling(temperature=0.0, max_new_tokens=8))))
    with closing(RaySettings(inner=inner, replicas=2).open(llama)) as engine:
        assert isinstance(engine, RayDistributionEngine) and engine.rows_a_job == 2
        assert len(list(islice(engine.generate(prompts(30), SAMPLED), 3))) == 3, "given up"
        found = []
        for done in engine.generate(prompts(150), SAMPLED):
            found.append(done)
            if len(found) == 20:
                os.kill(next(iter(rays(b"ray::MapWorker"))), signal.SIGKILL)
        assert by_id(found)[:30] == replies and len(found) == len({done.id for done in found}) == 150
        assert by_id(list(engine.generate(prompts(6), Sampling(temperature=0.0, max_new_tokens=8)))) == greedy
        for ours, theirs in zip(engine.logprobs(texts), scores, strict=True):
            assert (ours.id, ours.tokens) == (theirs.id, theirs.tokens)
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        for mine, its in zip(engine.distributions(texts[:5]), whole, strict=True):
            assert torch.allclose(mine, its, atol=1e-5)
    with closing(RaySettings(inner=ScriptedSettings(), replicas=1).open(NO_MODEL)) as other:
        assert not isinstance(other, RayDistributionEngine), "it has no distributions to give"


def test_what_goes_wrong_is_told(cluster: None, tmp_path: Path) -> None:
    two = [Request("a", "die"), Request("b", "live")]
    mortal = RaySettings(inner=MortalSettings(), replicas=1)
    with (
        pytest.raises(EngineError, match="die again and again with row 'a' and others"),
        closing(mortal.open(NO_MODEL)) as engine,
    ):
        list(engine.generate(two, Sampling()))
    failing = RaySettings(inner=ScriptedSettings(die_after=3), replicas=1)
    with pytest.raises(EngineError, match="died after 3 replies"), closing(failing.open(NO_MODEL)) as engine:
        list(engine.generate(prompts(9), Sampling()))
    with pytest.raises(EngineError, match="die again and again before they are ready"):
        RaySettings(inner=MortalSettings(stillborn=True), replicas=1).open(NO_MODEL)
    with pytest.raises(ModelError, match="nothing-here"):
        RaySettings(replicas=1).open(ModelConfig(name=str(tmp_path / "nothing-here")))
    with pytest.raises(EngineError, match=r"no replica was ready within 1 s; each asks for 99 CPUs and 0 GPUs"):
        RaySettings(inner=ScriptedSettings(), num_cpus=99, start_timeout=1).open(NO_MODEL)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A recipe over Ray, its run's folder, and what an undisturbed run leaves there."""
    tree = scripted_recipe(tmp_path, rows=60)
    folder = sdft.run(tree).path
    undisturbed = contents(folder)
    shutil.rmtree(folder)
    slow = tree["distill"]["engine"] | {"latency": 0.05}
    tree["distill"]["engine"] = {"name": "ray", "inner": slow}
    tree["evaluate"]["engine"] = {"name": "ray", "inner": {"name": "scripted"}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path, folder, undisturbed


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_or_interrupted_it_leaves_no_process_and_goes_on(
    run: tuple[Path, Path, dict[str, Any]], how: signal.Signals, code: int
) -> None:
    path, folder, undisturbed = run
    command = [sys.executable, "-m", "sdft.cli", "run", str(path)]
    before = rays()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        rewrites = folder / "distill/rewrites.jsonl"
        while process.poll() is None and not (rewrites.exists() and rewrites.read_bytes().count(b"\n") > 20):
            time.sleep(0.05)
        process.send_signal(how)
        said = process.communicate()[1]
    assert process.returncode == code, said
    done = rewrites.read_bytes().count(b"\n")
    assert 20 < done < 120
    deadline = time.monotonic() + 60
    while (left := rays() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    if how is signal.SIGKILL:
        sdft.run(path, ["distill.engine=scripted", "distill.engine.default=It is {seed}.", "evaluate.engine=scripted"])
    else:
        assert f"`sdft run {path}` goes on from here" in said
        subprocess.run(command, check=True, capture_output=True)
    after = contents(folder)
    engine_told = {"recipe.yaml", "manifest.json"}
    assert {
        name for name in after.keys() | undisturbed.keys() if after.get(name) != undisturbed.get(name)
    } <= engine_told


def rays(*ours: bytes) -> set[int]:
    """Pids of Ray's processes on this machine, but its agents, which take minutes to see that they are alone."""
    found, ours = set(), ours or (b"/raylet/raylet", b"gcs_server", b"ray::MapWorker", b"ray::_Desk")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if any(word in path.read_bytes() for word in ours):
                found.add(int(path.parent.name))
    return found


def test_gpus_are_asked_for_by_what_is_inside() -> None:
    split = RaySettings(inner={"name": "vllm", "tensor_parallel_size": 2})
    assert split.gpus(NO_MODEL, True) == split.gpus(NO_MODEL, False) == 2
    assert RaySettings(inner={"name": "vllm"}, num_gpus=0).gpus(NO_MODEL, True) == 0
    assert [RaySettings().gpus(NO_MODEL, there) for there in (True, False)] == [1, 0]
    assert RaySettings().gpus(ModelConfig(name="none", device="cpu"), True) == 0
    assert RaySettings(inner=ScriptedSettings()).gpus(NO_MODEL, True) == 0
    with pytest.raises(ValueError, match=r"leave out inner\.replicas, and raise replicas"):
        RaySettings(inner={"name": "transformers", "replicas": 2})


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdft.engines.ray.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="ray is not installed: pip install"):
        RaySettings().open(NO_MODEL)
