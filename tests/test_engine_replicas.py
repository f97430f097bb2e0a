"""Several replicas of an engine are as one: whatever their number, and however they end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers_models import WORDS, save_tiny_model
from helpers_pipeline import contents, write_data
from helpers_replicas import MortalSettings, members, wait_until_gone
from sdft.engines import Continuation, Request, Sampling, ScriptedSettings, TransformersSettings
from sdft.engines._processes import Processes
from sdft.engines._replicas import DistributionReplicas, Replicas
from sdft.errors import EngineError, ModelError
from sdft.models import ModelConfig
from sdft.order import plan
from sdft.recipe import load_recipe

SAMPLED = Sampling(temperature=0.9, top_p=0.8, top_k=40, max_new_tokens=24)
NO_MODEL = ModelConfig(name="none")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def two(llama: Path) -> Iterator[DistributionReplicas]:
    engine = TransformersSettings(replicas=2, max_batch_size=4).open(ModelConfig(name=str(llama), device="cpu"))
    assert isinstance(engine, DistributionReplicas)
    with closing(engine):
        yield engine


def requests(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(id=str(i), prompt=" ".join(rng.choices(WORDS, k=rng.randint(1, 60))), seed=rng.randrange(2**62))
        for i in range(count)
    ]


def scripted(settings: ScriptedSettings, count: int = 2, window: int = 4) -> Replicas:
    replicas = Replicas(Processes(settings, NO_MODEL, count), count, window)
    replicas.start(count)
    return replicas


def pids(engine: Replicas) -> list[int]:
    workers: list[Any] = [place.worker for place in engine._places]
    return [worker.process.pid for worker in workers]


def by_id(found: list[Any]) -> dict[str, Any]:
    assert len({done.id for done in found}) == len(found), "a row came twice"
    return {done.id: done for done in found}


def test_two_replicas_give_what_one_gives_and_read_no_further_than_they_work(
    llama: Path, two: DistributionReplicas
) -> None:
    asked, taken = requests(60), 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for request in asked:
            taken += 1
            yield request

    one = TransformersSettings(replicas=1).open(ModelConfig(name=str(llama), device="cpu"))
    alone = by_id(list(one.generate(asked, SAMPLED)))
    found = []
    for done in two.generate(stream(), SAMPLED):
        found.append(done)
        assert taken - len(found) < 2 * two.window  # those in hand, and no others
    assert by_id(found) == alone
    assert two.notes() == []


def test_scores_come_in_order_and_are_those_of_one(llama: Path, two: DistributionReplicas) -> None:
    one = TransformersSettings(replicas=1).open(ModelConfig(name=str(llama), device="cpu"))
    items = [Continuation(r.id, r.prompt, f" {r.prompt[:40]}") for r in requests(37)]
    found = list(two.logprobs(iter(items)))
    assert [scores.id for scores in found] == [item.id for item in items]
    for mine, other in zip(found, one.logprobs(items), strict=True):
        assert mine.tokens == other.tokens and mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    for whole, wanted in zip(two.distributions(items), one.distributions(items), strict=True):
        assert whole.dtype == torch.float32 and torch.allclose(whole, wanted, atol=1e-4)
    assert list(two.logprobs([])) == []


def test_killed_in_the_middle_no_row_is_lost_or_doubled(llama: Path, two: DistributionReplicas) -> None:
    calm = by_id(list(two.generate(requests(50), SAMPLED)))
    first, second = pids(two)
    found = []
    for done in two.generate(iter(requests(50)), SAMPLED):
        found.append(done)
        if len(found) in (5, 25):
            os.kill({5: first, 25: second}[len(found)], signal.SIGKILL)
    assert by_id(found) == calm
    assert two.notes() == ["replicas died and were replaced: 2; the rows they had in hand were done again"]
    items = [Continuation(r.id, r.prompt, " the cat") for r in requests(40)]
    scores = two.logprobs(items)
    told = [next(scores).id]
    os.kill(pids(two)[0], signal.SIGKILL)
    assert told + [score.id for score in scores] == [item.id for item in items]


def test_an_abandoned_call_leaves_nothing_to_the_next(two: DistributionReplicas) -> None:
    asked = requests(30)
    done = two.generate(asked, SAMPLED)
    next(done)
    done.close()  # type: ignore[attr-defined]
    scores = two.logprobs(Continuation(r.id, r.prompt, " is") for r in asked)
    next(scores)
    scores.close()  # type: ignore[attr-defined]
    others = [Request(f"other {r.id}", r.prompt, r.seed) for r in asked[:7]]
    assert set(by_id(list(two.generate(others, SAMPLED)))) == {request.id for request in others}


def test_each_has_its_gpu_and_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    crew = Processes(MortalSettings(latency=0.05), NO_MODEL, 2)
    crew.gpus = ["3", "GPU-5"]
    replicas = Replicas(crew, 2, 4)
    with closing(replicas):
        replicas.start(2)
        texts = {done.text for done in replicas.generate([Request(str(i), "where") for i in range(8)], Sampling())}
        assert texts == {f"{pid} {gpu} 2" for pid, gpu in zip(pids(replicas), crew.gpus, strict=True)}


def test_deaths_without_end_are_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match="died 3 times in a row, the last time with exit code 7 before it was ready"):
        scripted(MortalSettings(stillborn=True), count=1)
    with closing(scripted(MortalSettings(), count=1)) as replicas:
        asked = [*(Request(str(i), "live") for i in range(6)), Request("bad", "die")]
        found = replicas.generate(asked, Sampling())
        assert sorted(done.id for done in islice(found, 6)) == [str(i) for i in range(6)]
        with pytest.raises(EngineError, match=r"died with row 'bad' in hand|died 3 times in a row.* by SIGKILL"):
            next(found)
        assert [done.id for done in replicas.generate([Request("more", "live")], Sampling())] == ["more"]


def test_an_error_in_a_replica_is_told_once(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = TransformersSettings(replicas=2)
    with pytest.raises(ModelError, match="no such folder"):
        settings.open(ModelConfig(name="./nowhere"))
    broken = save_tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    capfd.readouterr()
    with pytest.raises((ModelError, RuntimeError), match=r"cannot be loaded|replica . failed"):
        settings.open(ModelConfig(name=str(broken), device="cpu"))
    assert "Traceback" not in capfd.readouterr().err
    with closing(scripted(ScriptedSettings(die_after=2))) as replicas:
        found = replicas.generate(requests(20), Sampling())
        with pytest.raises(EngineError, match="scripted engine: died after 2 replies"):
            list(found)


def recipe(folder: Path, model: Path, replicas: int) -> dict[str, Any]:
    data = folder / "data.jsonl"
    if not data.exists():
        write_data(data, 24)
    return {
        "name": "run", "output_dir": str(folder / "runs"), "model": str(model), "data": {"dataset": str(data)},
        "distill": {"engine": {"name": "transformers", "replicas": replicas, "max_batch_size": 2},
                    "max_new_tokens": 60},
        "methods": [], "evaluate": {"benchmarks": []},
    }  # fmt: skip


def test_a_run_goes_on_with_another_number(tmp_path: Path, llama: Path) -> None:
    one, two = (plan(load_recipe(recipe(tmp_path, llama, n))) for n in (1, 2))
    assert [stage.inputs for stage in one] == [stage.inputs for stage in two]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_leaves_no_process_and_goes_on(
    tmp_path: Path, llama: Path, how: signal.Signals
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, llama, 2)), encoding="utf-8")
    command = [sys.executable, "-m", "sdft", "distill", str(path)]
    started = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    rewrites = tmp_path / "runs/run/distill/rewrites.jsonl"
    while not (rewrites.exists() and rewrites.stat().st_size):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.02)
    assert len(members(started.pid)) >= 3
    if how == signal.SIGINT:
        os.killpg(started.pid, how)  # as a terminal does
    else:
        os.kill(started.pid, how)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
    assert "Traceback" not in said
    assert wait_until_gone(started.pid, 20) == []
    lines = rewrites.read_text(encoding="utf-8").splitlines()
    assert 0 < len(lines) < 24
    again = subprocess.run([*command, "distill.engine.replicas=1"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    fresh = recipe(tmp_path, llama, 1) | {"name": "fresh"}
    path.write_text(yaml.safe_dump(fresh), encoding="utf-8")
    subprocess.run(command, capture_output=True, check=True)
    name = "distill/rewrites.jsonl"
    assert contents(tmp_path / "runs/run")[name] == contents(tmp_path / "runs/fresh")[name]
