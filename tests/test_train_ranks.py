"""Training in several processes: two over gloo learn what one learns with twice the accumulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import scripted_recipe
from helpers_replicas import wait_until_gone
from sdft.errors import RunError
from sdft.rundir import read_json

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sdft.__file__).parents[1])}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sdft", *arguments]


def losses(run: Path, method: str) -> list[float]:
    history = read_json(run / f"train/{method}/trainer_state.json")["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def rank_of(launcher: int, number: int) -> int:
    """The pid of the process of this rank, which leads a session of its own, as torch's launcher starts it."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (path / "environ").read_bytes().split(b"\0")
            if {f"RANK={number}".encode(), f"SDFT_LAUNCHER={launcher}".encode()} <= set(variables):
                return int(path.name)
    raise AssertionError(f"no process of rank {number}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe whose rows are selected, so that it can be trained."""
    folder = tmp_path_factory.mktemp("ranks")
    settings = {
        "epochs": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 2,
    }
    return scripted_recipe(
        folder,
        rows=16,
        model={"name": str(save_tiny_model(folder / "model")), "device": "cpu"},
        methods=["sft"],
        train={**settings, "gradient_accumulation_steps": 4, "lora": {"r": 4, "alpha": 8}},
    )


def selected(tree: dict[str, Any], name: str, accumulation: int) -> tuple[Path, Path]:
    """A run that stands before training: its folder, and its recipe's file."""
    train = {**tree["train"], "gradient_accumulation_steps": accumulation}
    tree = {**tree, "name": name, "train": train}
    path = sdft.run(tree, only="distill").path
    sdft.run(tree, only="select")
    file = path.parent / f"{name}.yaml"
    file.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path, file


@pytest.fixture(scope="module")
def two(tree: dict[str, Any]) -> Path:
    """A run that two processes trained, undisturbed."""
    path, file = selected(tree, "two", 2)
    subprocess.run(command("train", str(file), "--num-processes", "2"), check=True, env=ENV, timeout=200)
    return path


def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(tree: dict[str, Any], two: Path) -> None:
    one, file = selected(tree, "one", 4)
    sdft.run(file, only="train")
    assert len(losses(one, "sft")) == 8
    assert losses(two, "sft") == pytest.approx(losses(one, "sft"), rel=1e-4)
    assert read_json(two / "train/sft/training.json")["tokens"] == read_json(one / "train/sft/training.json")["tokens"]
    assert not (two / "train/.sft.part").exists()


def test_an_error_ends_all_processes_with_its_own_exit_code(tree: dict[str, Any], tmp_path: Path) -> None:
    _, file = selected(tree, "bad", 2)
    bad = command("train", str(file), "train.lora.target_modules=[nowhere]", "--num-processes", "2")
    said = subprocess.run(bad, check=False, env=ENV, capture_output=True, text=True, timeout=200)
    assert said.returncode == 2
    assert "train.lora.target_modules" in said.stderr
    assert "Traceback" not in said.stderr


def test_everything_but_training_wants_one_process(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="in `sdft train` alone"):
        sdft.run(tree)


def test_the_launcher_killed_and_started_again_it_goes_on(tree: dict[str, Any], two: Path) -> None:
    path, file = selected(tree, "broken", 2)
    train = command("train", str(file), "--num-processes", "2")
    process = subprocess.Popen(train, env=ENV)
    deadline = time.monotonic() + 200
    while not list((path / "train/.sft.part/checkpoints").glob("checkpoint-*/complete.json")):
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint was written"
        time.sleep(0.02)
    leader = int((path / ".lock").read_text(encoding="utf-8"))
    follower = rank_of(process.pid, 1)
    os.kill(follower, signal.SIGSTOP)  # so that the other waits for it, and would for ever
    process.kill()
    process.wait()
    try:
        assert wait_until_gone(leader, 20) == []
    finally:
        os.kill(follower, signal.SIGCONT)
    assert wait_until_gone(follower, 20) == []
    assert not (path / "train/sft").exists()
    subprocess.run(train, check=True, env=ENV, timeout=200)
    assert losses(path, "sft") == losses(two, "sft")
    weights = "train/sft/adapter_model.safetensors"
    assert (path / weights).read_bytes() == (two / weights).read_bytes()
