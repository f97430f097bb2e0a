"""`sdft serve`: a server that is started, watched and stopped, with a small one in vLLM's place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import sdft
from helpers_replicas import members, wait_until_gone
from helpers_server import serving as another
from helpers_vllm import __file__ as fake
from sdft import serving
from sdft.engines import OpenAISettings, Request, Sampling, open_engine
from sdft.errors import RunError
from sdft.models import ModelConfig
from sdft.pipeline import find
from sdft.recipe import Recipe

Notes = Callable[[], dict[str, Any]]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notes:
    """What the small server wrote down."""
    path = tmp_path / "notes.json"
    monkeypatch.setenv("SDFT_VLLM", f"{sys.executable} {fake}")
    monkeypatch.setenv("FAKE_VLLM_NOTES", str(path))
    return lambda: json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "tiny"  # nothing here loads it
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    tree = {"model": {"name": str(model), "dtype": "float32"}, "methods": [], "output_dir": str(tmp_path / "runs")}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


MODULES = {"sft": ["q_proj", "v_proj"], "sdft": ["k_proj", "q_proj"]}


def leave_trained(recipe: Path, **ranks: int | None) -> Path:
    """A run's folder as training leaves it: an adapter of a rank, or, for None, a whole model."""
    resolved, folder = find(recipe)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(sdft.dump_recipe(resolved), encoding="utf-8")
    for method, rank in ranks.items():
        trained = folder / "train" / method
        trained.mkdir(parents=True)
        (trained / "training.json").write_text("{}", encoding="utf-8")
        if rank:
            (trained / "adapter_config.json").write_text(
                json.dumps({"r": rank, "target_modules": MODULES[method]}), encoding="utf-8"
            )
    return folder


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be reaped has."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_model_is_served_while_the_block_runs(recipe: Path, model: Path, notes: Notes) -> None:
    with sdft.serve(str(recipe), arguments=["--max-model-len", "256"]) as server:
        given = notes()
        assert (given["model"], given["served_model_name"], given["host"]) == (str(model), str(model), "127.0.0.1")
        assert (given["dtype"], given["max_model_len"], given["enable_lora"]) == ("float32", "256", False)
        lines = yaml.safe_load(server.lines())
        assert lines["distill"]["engine"] == {"name": "openai", "base_url": server.base_url}
        settings = OpenAISettings.model_validate(lines["evaluate"]["engine"])
        config = ModelConfig(name=str(model))
        with closing(open_engine(settings, "seed", config)) as engine:
            [reply] = engine.generate([Request("a", "hello")], Sampling())
        assert reply.text == "reply to hello"
        log = server.log
        assert log.exists()
    assert is_gone(given["pid"]) and is_gone(given["child"]) and not log.exists()


def test_the_adapters_of_a_run_are_served_with_it(recipe: Path, model: Path, notes: Notes) -> None:
    folder = leave_trained(recipe, sft=8, sdft=12)
    with sdft.serve(str(folder)) as server:
        given = notes()
        assert given["lora_modules"] == [f"{name}={folder}/train/{name}" for name in ("sdft", "sft")]
        assert given["lora_target_modules"] == ["k_proj", "q_proj", "v_proj"]
        assert (given["enable_lora"], given["max_loras"], given["max_lora_rank"]) == (True, "2", "16")
        lines = server.lines()
        assert yaml.safe_load(lines)["evaluate"]["engine"]["models"] == {"sdft": "sdft", "sft": "sft"}
    with sdft.serve(str(folder), method="sft") as server:
        assert notes()["lora_modules"] == [f"sft={folder}/train/sft"] and server.models == {"sft": "sft"}
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {"methods": ["sft", "sdft"], "data": {"dataset": "d"}}
    tree["evaluate"] = yaml.safe_load(lines)["evaluate"] | {"benchmarks": ["gsm8k"]}
    assert isinstance(sdft.load_recipe(tree).evaluate.engine, OpenAISettings), "the printed lines are a recipe's"


def test_what_cannot_be_served_is_told(recipe: Path, model: Path, tmp_path: Path) -> None:
    folder = leave_trained(recipe, sdft=None)
    with pytest.raises(RunError, match=r"method 'sft' is not trained here \(trained: sdft\)"):
        serving.what_to_serve(*find(folder), "sft")
    with pytest.raises(RunError, match=r"all weights of sdft were trained.*--method"):
        serving.what_to_serve(*find(folder), None)
    whole = serving.what_to_serve(*find(folder), "sdft")
    assert (whole.name, whole.folder, whole.models) == ("sdft", folder / "train/sdft", {"sdft": "sdft"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 4, "rank_pattern": {"q_proj": 40}}', encoding="utf-8")
    (adapter / "adapter_model.safetensors").touch()
    tuned = Recipe(model=ModelConfig(name=str(model), adapter=str(adapter)), methods=())
    served = serving.what_to_serve(tuned, tmp_path / "none", None)
    assert served.models == {"seed": "seed"} and served.adapters == {"seed": adapter}
    assert "--lora-target-modules" not in serving.serve_arguments(served, 1), "its adapter does not tell which"
    assert serving.serve_arguments(served, 1)[-3:] == ["64", "--lora-modules", f"seed={adapter}"]


def test_a_server_that_dies_is_told_with_the_end_of_its_log(
    recipe: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies")
    with pytest.raises(RunError, match="with exit code 3 before it answered") as told, sdft.serve(str(recipe)):
        pass
    assert str(told.value).endswith("  ValueError: no such architecture") and "much before" not in str(told.value)
    assert "\n  KeyError: the cause\n  …\n  wreck\n" in str(told.value), "the first error is shown, too"
    monkeypatch.setenv("FAKE_VLLM", "ends")
    with (
        sdft.serve(str(recipe)) as server,
        pytest.raises(RunError, match=r"ended with exit code 1; (?s:.*)out of memory"),
    ):
        server.wait()
    with pytest.raises(ValueError, match="asked in vain") as failed, sdft.serve(str(recipe)) as server:
        server.process.wait()
        raise ValueError("asked in vain")
    assert "ended with exit code 1" in failed.value.__notes__[0] and "out of memory" in failed.value.__notes__[0]
    assert is_gone(notes()["child"])


@pytest.mark.parametrize("option", ["--port=1", "--served-model-name", "--api-key"])
def test_options_that_would_shut_us_out_are_refused(recipe: Path, option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(RunError, match=f"^{name}: is set here"), sdft.serve(str(recipe), arguments=[option, "x"]):
        pass


def test_on_a_processor_prompts_are_read_whole(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serving.Served(model, ModelConfig(name=str(model)), "m", {}, {})
    for gpu, whole in ((None, True), (2**34, False)):
        monkeypatch.setattr(serving, "gpu_count", lambda count=int(bool(gpu)): count)
        assert ("--no-enable-chunked-prefill" in serving.serve_arguments(served, 1)) is whole


def test_a_server_that_never_answers_is_stopped(
    recipe: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "silent")
    monkeypatch.setattr(serving, "SILENT_SECONDS", 0.2)
    never = pytest.raises(RunError, match=r"not answered within 1 s(?s:.*)it said nothing")
    with never, sdft.serve(str(recipe), patience=1):
        pass
    first, *waiting, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"starting vllm for {recipe}; its log is /") and first.endswith("/vllm.log")
    assert waiting and all(line.startswith("vllm has been loading for ") for line in waiting)
    assert last == "stopping vllm"
    assert wait_until_gone(notes()["pid"], 2) == [], "nor is the watchman left"


def test_a_server_that_will_not_end_is_killed(recipe: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    monkeypatch.setattr(serving, "STOPPING", 0.2)
    with sdft.serve(str(recipe)):
        pass
    assert is_gone(notes()["pid"]) and is_gone(notes()["child"])


def test_a_taken_port_and_a_missing_command_are_told_at_once(
    recipe: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with another() as other:
        port = other.server_address[1]
        taken = pytest.raises(RunError, match=f"port {port} on 127.0.0.1 cannot be had")
        with taken, sdft.serve(str(recipe), port=port):
            pass
        assert serving._serves(port, set(other.models))
        with pytest.raises(
            RunError, match=rf"another server answers at .*:{port}: it serves served, not mine; .*--port"
        ):
            serving._serves(port, {"mine"})
        other.listing = 401
        with pytest.raises(RunError, match=rf"the server at .*:{port} wants a key \(401 for /v1/models\)"):
            serving._serves(port, set(other.models))
        other.listing = 503
        assert not serving._serves(port, set(other.models)), "which may pass"
    assert not serving._serves(port, set())
    monkeypatch.setenv("SDFT_VLLM", str(tmp_path / "none"))
    with pytest.raises(RunError, match=r"SDFT_VLLM: .*none is no command"), sdft.serve(str(recipe)):
        pass
    monkeypatch.delenv("SDFT_VLLM")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RunError, match=r"no command `vllm`: pip install 'vllm>=0.32'"), sdft.serve(str(recipe)):
        pass


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_command_stays_until_it_is_stopped(
    recipe: Path, notes: Notes, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """However it ends, nothing of the server stays behind."""
    command = [sys.executable, "-m", "sdft", "serve", str(recipe), "model.dtype=float16", "--", "--max-model-len", "64"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # where a killed one leaves its log
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as own:  # fmt: skip
        assert own.stdout is not None and own.stderr is not None
        head = "".join(own.stdout.readline() for _ in range(4))
        assert yaml.safe_load(head)["distill"]["engine"]["name"] == "openai"
        said = own.stderr.readline() + own.stderr.readline()
        given = notes()
        assert {given["pid"], given["child"]} < set(members(given["pid"])), "it leads a session, with a watchman"
        own.send_signal(number)  # to it alone
        said += own.stderr.read()
        assert own.wait(20) == code
    assert "serving at http://127.0.0.1:" in said and "Traceback" not in said
    assert (given["dtype"], given["max_model_len"]) == ("float16", "64")
    assert wait_until_gone(given["pid"], 20) == []
    assert serving._free_port(given["port"]) == given["port"], "the same command can be given again"
