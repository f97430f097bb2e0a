"""`sdft plan` and the engine `auto`: what a recipe will take, said before it is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sdft
from helpers_data import data_folder
from helpers_models import save_tiny_model
from helpers_pipeline import scripted_recipe
from sdft import memory
from sdft.engines import AutoSettings, TransformersSettings
from sdft.engines import auto as auto_engine
from sdft.errors import EngineError
from sdft.models import ModelConfig
from sdft.needs import with_engines
from sdft.planning import plan_recipe, room, speed, stages
from sdft.planning.speed import Speed, pace
from sdft.recipe import LoraConfig as OurLora
from sdft.recipe import Recipe, load_recipe
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


def test_an_adapter_on_every_matrix_is_counted_as_peft_makes_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "model", intermediate_size=400, tie_word_embeddings=False)
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    shape = memory.shape_of(folder)
    assert shape is not None
    trained = sum(weight.numel() for weight in theirs.parameters() if weight.requires_grad)
    assert room._adapter_numbers(OurLora(r=3), shape) == trained


@pytest.mark.parametrize(
    ("chosen", "sizes"),
    [
        (None, [1, 2, 3]), ("", []), ("-1", []), ("1", [2]), ("2, 0", [3, 1]), ("0,-1,1", [1]), ("1,7,0", [2]),
        ("GPU-bb", [2]), ("GPU-c,GPU-a", [3, 1]), ("GPU-x,0", []), ("MIG-1", [None]), ("no", []),
    ],
)  # fmt: skip
def test_gpus_are_those_that_cuda_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, sizes: list[int | None]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-a1, 1024\necho GPU-bb, 2048\necho GPU-c1, 3072\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(memory, "version", lambda package: "2.0")  # a torch that knows CUDA
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    first = None if sizes in ([], [None]) else sizes[0] * memory.GIB  # type: ignore[operator]
    assert memory.gpu_count() == len(sizes)
    assert memory.gpu_size() == memory.free_memory("cuda") == first
    assert (memory.guess_device() == "cuda") == bool(sizes)
    assert pace(TransformersSettings(), ModelConfig(name="m", device="cuda")) == max(1, len(sizes))


def test_auto_names_the_replicas_of_several_gpus(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_engine, "guess_device", lambda name: "cuda")
    monkeypatch.setattr(memory, "_gpus", lambda field: {"GPU-a": 8 << 30, "GPU-b": 8 << 30})
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


def planned(recipe: Recipe, processes: int = 1) -> dict[str, str]:
    """The lines of a plan: `distill` → its text, several of one kind joined."""
    kinds: dict[str, list[str]] = {}
    for line in plan_recipe(recipe, processes):
        kind, _, text = line.partition(": ")
        kinds.setdefault(kind, []).append(text)
    return {kind: "\n".join(texts) for kind, texts in kinds.items()}


@pytest.fixture
def no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of trying the model: 100 prompt and 10 new tokens a second, 50 in training, a second to load it."""
    tried = Speed(prompt=100.0, reply=10.0, rows=8, written=1.0, load=1.0)
    monkeypatch.setattr(speed, "_tried", lambda *_: tried)
    monkeypatch.setattr(stages, "training_rate", lambda *_: 50.0)


def test_a_plan_says_rows_tokens_time_memory_and_disk(model: ModelConfig, tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, rows=100, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"max_new_tokens": 16}
    tree["methods"] = ["sft", "sdft"]
    tree["evaluate"] = {"benchmarks": [{"name": "drift", "limit": 5}]}
    lines = planned(load_recipe(tree))
    kinds = ["data", "speed", "distill", "train", "evaluate", "analyze", "rest", "loading", "memory", "disk", "total"]
    assert list(lines) == kinds
    assert "100 examples, of which 64" in lines["data"]
    assert lines["speed"].startswith("distill and evaluate, transformers on cpu: ")
    assert "(at most 1,600)" in lines["distill"]
    assert "8 rows a step (2 × 4)" in lines["train"] and "sdft: about 26 steps, " in lines["train"]
    assert "5 rows for each of 3 models" in lines["evaluate"] and "side by side" in lines["evaluate"]
    assert "likelihood of 100 originals and as many rewrites" in lines["analyze"]
    assert "of models, 11 times" in lines["loading"]  # 1 to distil, 2 to train, 3 + 2 to evaluate, 3 to analyze
    assert "train: " in lines["memory"] and "free" in lines["memory"]
    assert lines["total"].startswith("about ") and "not estimated" not in lines["total"]
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_the_total_is_the_sum_of_the_stages(model: ModelConfig, tmp_path: Path, no_try: None) -> None:
    tree = scripted_recipe(tmp_path, rows=100, model=model.model_dump(), prompt={"style": "chat"})
    tree |= {"distill": {"max_new_tokens": 16}, "methods": ["sdft"], "analyze": {"nll": False, "weights": False}}
    tree["evaluate"] = {"benchmarks": [{"name": "drift", "limit": 5, "sampling": {"max_new_tokens": 100}}]}
    recipe = load_recipe(tree)
    lines = planned(recipe)
    seconds = {kind: _seconds(part) for kind, part in re.findall(r"(\w+) ((?:\d+ (?:h|min|s) ?)+)", lines["total"])[1:]}
    assert set(seconds) == {"distill", "train", "evaluate", "loading"}
    assert seconds["loading"] == 1 + 1 + 2 + 1
    [prompts] = re.findall(r"(\d+) prompt tokens", lines["evaluate"])
    assert 2 * 50 <= seconds["evaluate"] - 2 * (int(prompts) + 500) / 100 <= 2 * (50 + int(prompts) / 100)
    [tokens] = re.findall(r"([\d,]+) tokens; about", lines["train"])
    assert seconds["train"] == round(int(tokens.replace(",", "")) / 50)
    [whole] = re.findall(r"^about ((?:\d+ \w+ ?)+)", lines["total"])
    assert abs(_seconds(whole) - sum(seconds.values())) <= 2


def _seconds(text: str) -> int:
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", text))


def test_several_processes_share_a_processor_and_not_gpus(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_try: None
) -> None:
    tree = scripted_recipe(tmp_path, rows=100, model=model.model_dump(), prompt={"style": "chat"})
    recipe = load_recipe(tree | {"methods": ["sft"]})
    alone, together = planned(recipe), planned(recipe, processes=4)
    assert "32 rows a step (2 × 4 × 4 processes)" in together["train"]
    assert "sft: about 26 steps" in alone["train"] and "sft: about 8 steps" in together["train"]
    assert alone["train"].rpartition("; about")[2] == together["train"].rpartition("; about")[2]
    assert "each of 4 processes" in together["memory"] and " in all" in together["memory"]
    monkeypatch.setattr(memory, "_gpus", lambda field: {"GPU-a": 8 << 30, "GPU-b": 8 << 30})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    on_gpus = planned(load_recipe(tree | {"methods": ["sft"], "model": {**tree["model"], "device": "cuda"}}), 4)
    assert "times 4 if none waits" in on_gpus["train"]
    assert "too few GPUs, 2 are seen here" in on_gpus["memory"]


def test_what_replicas_take_and_how_fast_they_are(model: ModelConfig, tmp_path: Path, no_try: None) -> None:
    tree = scripted_recipe(tmp_path, rows=100, model=model.model_dump(), prompt={"style": "chat"})
    elsewhere = {"name": "ray", "replicas": 4, "address": "auto"}
    tree["distill"] = {"max_new_tokens": 16, "engine": elsewhere}
    tree["evaluate"]["engine"] = {**elsewhere, "num_gpus": 1}
    lines = planned(load_recipe(tree))
    assert "times 4 if each replica is as fast as this one" in lines["speed"]
    assert "evaluate, ray: not estimated, for its replicas work on GPUs" in lines["speed"]
    assert "distill, ray: each of 4 replicas " in lines["memory"] and "cannot be seen from here" in lines["memory"]
    assert "not estimated, and on top: evaluate, analyze" in lines["total"]
    tree["distill"]["engine"] = {**elsewhere, "inner": {"name": "vllm", "tensor_parallel_size": 2}}
    split = planned(load_recipe(tree))
    assert "distill, ray: not estimated, for vLLM takes minutes to start" in split["speed"]
    assert "each of 4 replicas takes" in split["memory"] and "on each of its 2 GPUs" in split["memory"]
    tree["distill"]["engine"] = {"name": "transformers", "replicas": 4}
    shared = planned(load_recipe(tree))
    assert "its 4 replicas share this machine" in shared["speed"] and " in all" in shared["memory"]


def test_two_models_are_counted_where_drift_opens_them(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_try: None
) -> None:
    tree = scripted_recipe(tmp_path, rows=20, model=model.model_dump(), prompt={"style": "chat"}, methods=["sft"])
    tree["evaluate"]["engine"] = "transformers"
    tree["train"] = {"max_length": 64}
    assert "drift has two models side by side" in planned(load_recipe(tree))["memory"]
    shape = memory.local_shape(model)
    assert shape is not None
    monkeypatch.setattr(room, "free_memory", lambda device: 1.5 * shape.weight_bytes("float32", "cpu"))
    [evaluate] = [line for line in planned(load_recipe(tree))["memory"].splitlines() if line.startswith("evaluate")]
    assert "too little" in evaluate
    assert "side by side" not in planned(load_recipe(tree | {"methods": []}))["memory"]


def test_the_room_that_vllm_has_for_its_cache(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_try: None
) -> None:
    tree = scripted_recipe(tmp_path, rows=20, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"max_new_tokens": 16, "engine": {"name": "vllm", "tensor_parallel_size": 2}}
    blind = planned(load_recipe(tree))
    assert "no GPU is seen here" in blind["memory"] and "weights on each of 2 GPUs" in blind["memory"]
    assert "distill, vllm: not estimated, for vLLM takes minutes" in blind["speed"]
    shape = memory.local_shape(model)
    assert shape is not None
    size, weights = 1 << 30, 4 * shape.parameters // 2
    monkeypatch.setattr(memory, "_on_gpus", lambda field: [size, size])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = planned(load_recipe(tree))["memory"]
    a_token = shape.cache_bytes("float32", "cuda") / 2
    assert f"at most {int((0.9 * size - weights) / a_token):,} tokens of cache" in seen and "too" not in seen
    tree["distill"]["engine"]["tensor_parallel_size"] = 4
    assert "too few GPUs, 2 are seen here" in planned(load_recipe(tree))["memory"]


def test_the_cost_of_paid_servers_and_judges_is_planned_without_asking_them(tmp_path: Path) -> None:
    data_folder("bench/xstest/xstest_prompts.jsonl")
    server = {"prompt_price": 1.0, "completion_price": 2.0, "base_url": "http://127.0.0.1:9/v1"}
    tree = scripted_recipe(tmp_path, rows=50, model="org/model", prompt={"style": "chat"})
    tree["distill"] = {"engine": {"name": "openai", **server}, "max_new_tokens": 16, "candidates": 3}
    judge = {"model": "judge", **server}
    tree["evaluate"] = {
        "engine": {"name": "openai", **server},
        "benchmarks": [{"name": "drift", "limit": 5}, {"name": "xstest", "limit": 2, "judge_model": judge}],
    }
    lines = planned(load_recipe(tree))
    assert "http://127.0.0.1:9/v1 is asked for " in lines["distill"] and ", cost " in lines["distill"]
    [prompt_tokens] = re.findall(r"asked for ([\d,]+) prompt", lines["distill"])
    most = 3 * (int(prompt_tokens.replace(",", "")) + 2 * 50 * 16) / 1e6
    assert f"at most {most:.2g}" in lines["distill"]
    assert "drift: http://127.0.0.1:9/v1 is asked for " in lines["evaluate"]
    assert lines["judge"].startswith("xstest: at most judge judge at http://127.0.0.1:9/v1: 2 calls, ")
    costs = re.findall(r"(?:at most|cost at most about|cost) ([\d.]+)$", "\n".join(lines.values()), re.MULTILINE)
    *each, whole = map(float, costs)
    assert len(each) == 5 and whole == pytest.approx(sum(each), rel=0.05)
    assert "time is not estimated" in lines["total"] and "how fast a server is" in lines["speed"]
    del judge["prompt_price"], judge["completion_price"]
    lines = planned(load_recipe(tree))
    assert lines["judge"].endswith("needs prompt_price and completion_price")
    assert lines["total"].endswith("; without the prices of judge")


def test_a_local_model_is_tried_where_a_server_rewrites(model: ModelConfig, tmp_path: Path, no_try: None) -> None:
    tree = scripted_recipe(tmp_path, rows=20, model=model.model_dump(), prompt={"style": "chat"})
    tree["distill"] = {"engine": "openai", "max_new_tokens": 16}
    tree["evaluate"]["engine"] = "transformers"
    lines = planned(load_recipe(tree))
    assert "evaluate, transformers on cpu: 100 prompt and 10 new tokens/s" in lines["speed"]
    assert "; about " in lines["evaluate"] and "; about " not in lines["distill"]
    assert "not estimated, and on top: distill" in lines["total"]
    assert "distill" not in lines["memory"], "a server's memory is not this machine's"
