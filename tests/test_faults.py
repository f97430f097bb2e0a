"""Kills at any moment, full disks, unreadable files: the same command afterwards ends with the same files."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import contents, scripted_recipe

KILLS = (
    "data", "data", "distill", "distill", "distill", "distill", "select", "select", "train/sft", "train/sft",
    "train/sft", "train/sft", "train/sdft", "train/sdft", "train/sdft", "eval/seed", "eval/seed", "eval/sft",
    "eval/sft", "eval/sdft", "eval/sdft", "compare", "analyze", "analyze", "report", "report",
)  # fmt: skip
"""The stage that each kill is aimed at."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Zygote:
    """Starts runs as forked children of a process that has imported everything already."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("helpers_zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
        )

    def start(self, recipe: dict[str, Any]) -> int:
        """The pid of a process that runs the recipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"recipe": recipe, "log": str(self.log)}) + "\n")
        self.process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """The exit status of the last one; -9 where it was killed."""
        return int(self._answer()["status"])

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path / "log.txt")
    yield zygote
    zygote.process.kill()
    zygote.process.communicate()


def tiny_recipe(folder: Path) -> dict[str, Any]:
    """All stages on a random model: ten rows, ten training steps."""
    save_tiny_model(folder / "model", hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    return scripted_recipe(folder, rows=10) | {
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "prompt": {"style": "chat"},
        "distill": {"candidates": 3, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 20},
        "select": {"checks": ["leak", {"name": "length", "max_ratio": 6.0}], "keep_truncated": True},
        "train": {
            "epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "save_steps": 3,
            "logging_steps": 1,
            "max_length": 128,
        },
        "methods": ["sft", "sdft"],
        "evaluate": {
            "benchmarks": [{"name": "drift", "limit": 4, "sampling": {"temperature": 0.0, "max_new_tokens": 12}}]
        },
    }


@pytest.mark.slow
def test_killed_more_than_twenty_times_in_every_stage_a_run_ends_with_the_same_files(
    tmp_path: Path, zygote: Zygote
) -> None:
    recipe = tiny_recipe(tmp_path)
    folder = tmp_path / "runs/run"
    zygote.start(recipe)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    seconds = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["durations"]
    undisturbed = contents(folder)
    drift = {score["metric"]: score["value"] for score in undisturbed["eval/sdft/drift/scores.json"]["scores"]}
    assert drift["kl"] > 0
    shutil.rmtree(folder)

    draw = random.Random(0)
    killed: list[str] = []
    for stage in KILLS:
        pid = zygote.start(recipe)
        marker = folder / "stages" / f"{stage.replace('/', '.')}.json"
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.random() * (0.02 + seconds[stage]))
        with suppress(ProcessLookupError):  # it has ended already
            os.kill(pid, signal.SIGKILL)
        status = zygote.wait()
        assert status in (-signal.SIGKILL, 0), zygote.log.read_text(encoding="utf-8")
        if status != 0:
            killed.append(stage)
    zygote.start(recipe)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")

    assert len(killed) >= 20, killed
    after = contents(folder)
    assert sorted(after) == sorted(undisturbed)
    assert [name for name in after if after[name] != undisturbed[name]] == []


def command(path: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "sdft.cli", "run", str(path), *overrides]


@pytest.fixture
def scripted_run(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A recipe file, its run folder, and what an undisturbed run leaves there."""
    tree = scripted_recipe(tmp_path, rows=60)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    folder = sdft.run(path).path
    undisturbed = contents(folder)
    shutil.rmtree(folder)
    return path, folder, undisturbed


def test_the_command_line_killed_and_given_again(scripted_run: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, undisturbed = scripted_run
    draw = random.Random(1)
    slow = ("distill.engine.latency=0.02", "evaluate.engine.latency=0.02")
    killed = 0
    for _ in range(4):
        with subprocess.Popen(command(path, *slow), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (folder / "stages/distill.json").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.3, 1.0))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    subprocess.run(command(path), check=True, stdout=subprocess.DEVNULL)
    assert killed >= 2
    assert contents(folder) == undisturbed


def refused(path: Path, limit: Callable[[], None] | None = None) -> str:
    """What the command line says when it exits with 2."""
    said = subprocess.run(command(path, "-q"), capture_output=True, text=True, check=False, preexec_fn=limit)
    assert said.returncode == 2, said.stderr
    assert "Traceback" not in said.stderr
    assert said.stderr.count("\n") == 1
    return said.stderr


def test_a_file_that_may_not_grow(scripted_run: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, undisturbed = scripted_run

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (14_000, 14_000))

    assert "the disk is full" in refused(path, limit)
    assert (folder / "distill/rewrites.jsonl").stat().st_size > 0
    subprocess.run(command(path), check=True, capture_output=True)
    assert contents(folder) == undisturbed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(scripted_run: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, undisturbed = scripted_run
    folder.mkdir(parents=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "sdft-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    try:
        for _ in range(2):  # still full the second time
            assert "the disk is full; what is done is kept: make room and give the same command again" in refused(path)
        subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
        subprocess.run(command(path), check=True, capture_output=True)
        assert contents(folder) == undisturbed
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("distill/rewrites.jsonl", b"\x00\x00\x00\n", "rewrites.jsonl:1: not a Rewrite"),
        ("stages/distill.json", b"", "distill.json: cannot be read"),
        ("data/train.jsonl", b'{"id": 3}\n', "train.jsonl:1: not a Example"),
    ],
)
def test_an_unreadable_file_is_named(
    scripted_run: tuple[Path, Path, dict[str, Any]], name: str, text: bytes, said: str
) -> None:
    path, folder, _ = scripted_run
    sdft.run(path, only="distill")
    (folder / name).write_bytes(text)
    assert said in refused(path)


def test_a_run_folder_that_cannot_be_written(scripted_run: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, _ = scripted_run
    folder.parent.rmdir()
    folder.parent.write_text("a file where a folder should be", encoding="utf-8")
    assert str(folder.parent) in refused(path)


def test_an_engine_that_dies_leaves_its_replies(scripted_run: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, undisturbed = scripted_run
    with pytest.raises(sdft.EngineError, match="died after 25"):
        sdft.run(path, ["distill.engine.die_after=25"])
    assert len((folder / "distill/rewrites.jsonl").read_text(encoding="utf-8").splitlines()) == 25
    sdft.run(path)
    assert contents(folder) == undisturbed
