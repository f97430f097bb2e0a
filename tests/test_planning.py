"""`sdft plan` and the engine `auto`: what a recipe will take, said before it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import scripted_recipe
from sdft import memory
from sdft.engines import AutoSettings, OpenAISettings, TransformersSettings
from sdft.engines import auto as auto_engine
from sdft.errors import EngineError
from sdft.models import ModelConfig
from sdft.needs import with_engines
from sdft.planning import plan_recipe
from sdft.recipe import load_recipe
from sdft.rundir import read_json


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    return ModelConfig(name=str(folder), dtype="float32", device="cpu")


def test_a_models_memory_is_read_from_its_files(model: ModelConfig) -> None:
    from transformers import AutoModelForCausalLM

    shape = memory.local_shape(model)
    loaded = AutoModelForCausalLM.from_pretrained(model.name)
    assert shape is not None
    assert shape.parameters == sum(weight.numel() for weight in loaded.parameters())
    assert shape.weight_bytes("bfloat16", "cpu") == 2 * shape.parameters
    assert shape.cache_bytes("float32", "cpu") == 2 * 2 * 2 * 12 * 4  # keys and values, layers, heads, head, bytes
    assert memory.local_shape(ModelConfig(name="org/none")) is None
    assert memory.free_memory("cpu") or not Path("/proc/meminfo").exists()


def test_auto_takes_what_fits_and_says_so_in_one_line(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = memory.local_shape(model)
    assert shape is not None
    engine, why = AutoSettings().choose(model)
    assert engine.max_batch_size == 32 and "\n" not in why
    assert why.startswith("transformers on cpu, 32 rows at once; weights take 0.0 of ")
    row = memory.USUAL_TOKENS * shape.cache_bytes("float32", "cpu")
    small = round((shape.weight_bytes("float32", "cpu") + 5.5 * row) / memory.USABLE)
    monkeypatch.setattr(auto_engine, "free_memory", lambda device: small)
    assert AutoSettings().choose(model)[0].max_batch_size == 5
    monkeypatch.setattr(auto_engine, "free_memory", lambda device: 1000)
    with pytest.raises(EngineError, match="does not fit"):
        AutoSettings().choose(model)


def test_auto_names_the_replicas_of_several_gpus(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_engine, "guess_device", lambda name: "cuda")
    monkeypatch.setattr(memory, "_free_on_gpus", lambda: [8 << 30, 8 << 30])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    engine, why = AutoSettings().choose(model, "distributions")
    assert why.startswith("transformers on 2 GPUs, a replica on each, 256 rows at once; ")
    assert isinstance(engine, TransformersSettings) and engine.replicas == "auto"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert AutoSettings().choose(model, "distributions")[1].startswith("transformers on cuda, 256 rows at once; ")


def test_a_run_keeps_to_the_engine_that_auto_took(model: ModelConfig, tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, rows=2, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"engine": "auto", "max_new_tokens": 4}
    recipe, [said] = with_engines(load_recipe(tree))
    assert said.startswith("distill.engine auto: transformers on cpu")
    folder = sdft.run(tree, only="distill").path
    assert load_recipe(folder / "recipe.yaml").distill.engine == recipe.distill.engine
    assert sdft.run(tree, only="distill").done == ()
    assert read_json(folder / "manifest.json")["recipe"]["distill"]["engine"]["name"] == "transformers"


def test_a_plan_says_rows_tokens_time_memory_and_disk(model: ModelConfig, tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, rows=100, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"max_new_tokens": 16}
    tree["methods"] = ["sft", "sdft"]
    tree["evaluate"] = {"benchmarks": [{"name": "drift", "limit": 5}]}
    lines = list(plan_recipe(load_recipe(tree)))
    by_kind = {line.partition(": ")[0]: line for line in lines}
    assert list(by_kind) == ["data", "distill", "train", "evaluate", "memory", "disk"]
    assert "100 examples, of which 64" in by_kind["data"]
    assert "at most 1,600; about" in by_kind["distill"] and "tokens/s" in by_kind["distill"]
    assert "26 steps" in by_kind["train"] or "25 steps" in by_kind["train"]
    assert "5 rows for each of 3 models" in by_kind["evaluate"]
    assert "training" in by_kind["memory"] and "free" in by_kind["memory"]
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_the_cost_of_a_paid_server_is_planned_without_asking_it(tmp_path: Path) -> None:
    engine = OpenAISettings(prompt_price=1.0, completion_price=2.0, base_url="http://127.0.0.1:9/v1").model_dump()
    tree = scripted_recipe(tmp_path, rows=50, model="org/model", prompt={"style": "chat"})
    tree["distill"] = {"engine": engine, "max_new_tokens": 16}
    tree["evaluate"] = {"engine": engine, "benchmarks": [{"name": "drift", "limit": 5}]}
    lines = list(plan_recipe(load_recipe(tree)))
    distilling, measuring = [line for line in lines if ", cost " in line]
    assert distilling.startswith("distill, on http://127.0.0.1:9/v1: ")
    assert measuring.startswith("evaluate: drift: ")
