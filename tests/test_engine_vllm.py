"""The engine vllm, with a small package in vLLM's place that writes down what it is given (`make vllm-test` takes the
real one)."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from helpers_models import save_tiny_model, tiny_tokenizer
from helpers_pipeline import scripted_recipe
from helpers_replicas import members, wait_until_gone
from helpers_vllm_package import FakeLLM, modules
from sdft.engines import AutoSettings, Continuation, DistributionEngine, Engine, Request, Sampling, VLLMSettings
from sdft.engines import auto as auto_engine
from sdft.engines import vllm as vllm_engine
from sdft.engines._vllm_worker import OPENER, EndsWithOpener
from sdft.errors import EngineError, ModelError, RecipeError
from sdft.memory import Shape
from sdft.models import ModelConfig
from sdft.needs import with_engines
from sdft.pipeline import check_all
from sdft.recipe import load_recipe


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import vllm` gives the small one."""
    for name, made in modules().items():
        monkeypatch.setitem(sys.modules, name, made)
    for name in vllm_engine.QUIET:
        monkeypatch.delenv(name, raising=False)
    FakeLLM.opened.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(name=str(save_tiny_model(tmp_path_factory.mktemp("vllm") / "tiny")))


def ids(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


def test_rows_come_as_they_finish_and_no_more_are_held_than_fit(model: ModelConfig) -> None:
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(20):
            read.append(number)
            yield Request(str(number), "red " * (1 + number % 5), seed=2**63 - 1)

    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=8)
    with closing(VLLMSettings(max_batch_size=3).open(model)) as engine:
        assert isinstance(engine, Engine) and not isinstance(engine, DistributionEngine)
        stream = engine.generate(requests(), sampling)
        first = next(stream)
        assert len(read) == 6, "so many as vLLM has rows, and as many again to follow"
        rest = list(stream)
        [llm] = FakeLLM.opened
        assert llm.most == 6 and not llm.held
        given = llm.params[0]
        assert (given.temperature, given.top_p, given.top_k, given.max_tokens) == (0.5, 0.9, 7, 8)
        assert given.seed == 2**63 - 1
    assert llm.is_shut
    assert sorted(int(c.id) for c in [first, *rest]) == list(range(20))
    for completion in (first, *rest):
        prompt = ids("red " * (1 + int(completion.id) % 5))
        assert (completion.text, completion.prompt_tokens, completion.tokens) == (str(len(prompt)), len(prompt), 8)
        assert completion.finish == "stop"


def test_vllm_is_opened_as_the_settings_say(model: ModelConfig) -> None:
    settings = VLLMSettings(tensor_parallel_size=2, gpu_memory_utilization=0.5, max_model_len=64, enforce_eager=True)
    with closing(settings.open(model)):
        options = FakeLLM.opened[0].options
    module, _, name = options.pop("worker_extension_cls").rpartition(".")
    assert getattr(importlib.import_module(module), name) is EndsWithOpener, "as vLLM's workers look it up"
    assert os.environ[OPENER] == str(os.getpid())
    assert options == {
        "model": model.name, "dtype": "bfloat16", "trust_remote_code": False, "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5, "max_model_len": 64, "max_num_seqs": 256, "enable_prefix_caching": True,
        "enforce_eager": True,
    }  # fmt: skip
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1", "nothing is reported anywhere"
    with pytest.raises(EngineError, match=r"it computes on cuda here, and model\.device is cpu"):
        settings.open(model.model_copy(update={"device": "cpu"}))


def test_what_cannot_be_answered_is_a_row_with_the_reason(model: ModelConfig) -> None:
    with closing(VLLMSettings(max_model_len=16).open(model)) as engine:
        long, empty, broken = "red " * 40, "", "a" * 13
        assert len(ids(broken)) == 13
        requests = [Request(str(n), text) for n, text in enumerate([long, empty, broken, "red red"])]
        found = {c.id: c for c in engine.generate(requests, Sampling(max_new_tokens=100))}
    assert found["0"].finish == "error" and "no room in 16 tokens" in (found["0"].error or "")
    assert found["1"].error == "the prompt is empty (0 tokens)"
    assert found["2"].error == "vLLM broke the reply off (abort)"
    assert found["3"].tokens == 16 - len(ids("red red")) and FakeLLM.opened[0].params[-1].seed is None, "greedy"


def test_stops_that_are_one_token_go_by_id(model: ModelConfig) -> None:
    with closing(VLLMSettings().open(model)) as engine:
        list(engine.generate([Request("a", "red", stop=("<|im_end|>", "Question:"))], Sampling()))
    [given] = FakeLLM.opened[0].params
    assert given.stop == ["Question:"] and given.stop_token_ids == ids("<|im_end|>")


def test_replies_are_scored_in_order(model: ModelConfig) -> None:
    items = [Continuation(str(n), "red " * (9 - n), "blue tree") for n in range(9)]
    with closing(VLLMSettings(max_batch_size=2).open(model)) as engine:
        scored = list(engine.logprobs(items))
        assert FakeLLM.opened[0].most == 4
        with pytest.raises(EngineError, match="logprobs of 'x': the prompt is empty"):
            list(engine.logprobs([items[0], Continuation("x", "", "blue")]))
        assert not FakeLLM.opened[0].held, "what nobody waits for is taken back"
    assert [row.id for row in scored] == [item.id for item in items]
    reply = tuple(ids("blue tree"))
    assert all(row.tokens == reply and row.logprobs == tuple(-t / 10 for t in reply) for row in scored)


def test_an_adapter_is_applied_or_told_not_to_fit(model: ModelConfig, tmp_path: Path) -> None:
    for name in ("good", "misfit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": 20}), encoding="utf-8")
        (tmp_path / name / "adapter_model.safetensors").touch()
    tuned = model.model_copy(update={"adapter": str(tmp_path / "good")})
    with closing(VLLMSettings().open(tuned)) as engine:
        list(engine.generate([Request("a", "red")], Sampling()))
        [llm] = FakeLLM.opened
    assert llm.options["enable_lora"] and llm.options["max_lora_rank"] == 32
    assert [request.path for request in llm.loras] == [str(tmp_path / "good")]
    with pytest.raises(ModelError, match=r"misfit: vLLM cannot load the adapter \(rank does not fit\)"):
        VLLMSettings().open(model.model_copy(update={"adapter": str(tmp_path / "misfit")}))
    assert FakeLLM.opened[-1].is_shut
    (tmp_path / "good/adapter_config.json").write_text(json.dumps({"r": 1024}), encoding="utf-8")
    with pytest.raises(ModelError, match="up to rank 512; one has 1024"):
        VLLMSettings().open(tuned)


def test_a_stream_that_is_dropped_takes_its_rows_back_and_a_dead_vllm_is_told(model: ModelConfig) -> None:
    requests = [Request(str(n), "red") for n in range(5)]
    with closing(VLLMSettings().open(model)) as engine:
        stream = engine.generate(requests, Sampling())
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        [llm] = FakeLLM.opened
        assert not llm.held
        llm.dies_after = llm.count
        with pytest.raises(EngineError, match=r"it has ended \(EngineCore encountered an issue\)"):
            list(engine.generate(requests, Sampling()))


TREE = """
import multiprocessing, os, time
from sdft.engines._vllm_worker import OPENER, EndsWithOpener
context = multiprocessing.get_context("fork")
os.environ[OPENER] = str(os.getpid())

class Worker(EndsWithOpener):
    def __init__(self, rank):
        os.write(1, b"ready\\n")

def work():
    Worker(rank=0)
    time.sleep(60)

def core():
    context.Process(target=work).start()
    time.sleep(60)

for target in (work, core):
    context.Process(target=target).start()
time.sleep(60)
"""
"""Starts processes as vLLM does: a core that has the worker in it, as with one GPU, and one with a worker beside it."""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="of Linux")
def test_killed_it_leaves_none_of_vllms_processes() -> None:
    command = [sys.executable, "-c", TREE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as opener:
        assert opener.stdout is not None
        assert [opener.stdout.readline() for _ in range(2)] == ["ready\n"] * 2 and len(members(opener.pid)) == 4
        opener.kill()
    assert wait_until_gone(opener.pid, 20) == []


def test_check_says_how_to_get_it(model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = scripted_recipe(tmp_path, rows=2, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"engine": "vllm"}
    check_all(tree)
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"distill\.engine: the package vllm is not installed: pip install 'vllm>="):
        check_all(tree)
    with pytest.raises(EngineError, match="pip install"):
        VLLMSettings().open(model)


def test_auto_takes_it_on_cuda_but_not_for_drift(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert AutoSettings().choose(model)[0].name == "transformers"
    monkeypatch.setattr(auto_engine, "guess_device", lambda name: "cuda")
    monkeypatch.setattr(auto_engine, "free_memory", lambda device: 80 << 30)
    engine, why = AutoSettings().choose(model)
    assert engine == VLLMSettings() and why == "vllm on cuda; weights take 0.0 of 80.0 GiB free"
    tree = scripted_recipe(tmp_path, rows=2, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"engine": "auto"}
    tree["evaluate"] = {"engine": "auto", "benchmarks": [{"name": "drift", "limit": 2}]}
    recipe, [distilling, evaluating] = with_engines(load_recipe(tree))
    assert (recipe.distill.engine.name, recipe.evaluate.engine.name) == ("vllm", "transformers")
    assert distilling.startswith("distill.engine auto: vllm on cuda")
    assert evaluating.endswith("drift needs whole distributions, which vllm does not give")


def test_auto_splits_a_model_that_one_gpu_does_not_hold(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_engine, "guess_device", lambda name: "cuda")
    monkeypatch.setattr(auto_engine, "free_memory", lambda device: 80 << 30)
    monkeypatch.setattr(auto_engine, "gpu_count", lambda: 4)
    engine, why = AutoSettings().choose(model)
    assert engine == VLLMSettings() and "; 3 of 4 GPUs stay idle: engine ray with vllm inside" in why
    shape = Shape(
        parameters=70 << 30, layers=80, heads=28, kv_heads=4, head_size=128, hidden=3584, vocabulary=1000, adaptable=0
    )  # fmt: skip
    monkeypatch.setattr(auto_engine, "local_shape", lambda model: shape)
    for gpus, parts, told in ((2, 0, ""), (3, 0, ""), (4, 4, "GPUs;"), (6, 4, "GPUs, 2 stay idle;")):
        monkeypatch.setattr(auto_engine, "gpu_count", lambda gpus=gpus: gpus)
        if not parts:  # on two there is no room, and three cannot share 28 heads
            with pytest.raises(EngineError, match=r"does not fit: 140\.0 GiB of weights"):
                AutoSettings().choose(model)
            continue
        engine, why = AutoSettings().choose(model)
        assert engine == VLLMSettings(tensor_parallel_size=parts)
        assert why == f"vllm, split over {parts} {told} weights take 140.0 of 80.0 GiB free on each"
    with pytest.raises(EngineError, match="does not fit"):
        AutoSettings().choose(model, "distributions")
