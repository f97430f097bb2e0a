"""Kills at any moment, full disks, unreadable files: the same command afterwards ends with the same files."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import sdft
from helpers_checks import data_file
from helpers_models import save_tiny_model
from helpers_pipeline import contents, scripted_recipe
from helpers_replicas import wait_until_gone
from helpers_server import MODEL, serving

STAGES = (
    "data", "distill", "select", "train/sft", "train/sdft", "eval/seed", "eval/sft", "eval/sdft", "compare", "analyze",
    "report",
)  # fmt: skip
LONG = ("distill", "train/sft", "train/sdft", "eval/sft")
"""Long enough to be killed at a moment drawn at random, too."""
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

    def start(
        self,
        recipe: dict[str, Any] | str,
        command: str = "run",
        clock: bool = False,
        vllm: float | None = None,
        dies: tuple[str, float | None] | None = None,
    ) -> int:
        """The pid of a process that gives a command for a recipe.

        `clock`: with a clock that runs backwards; `vllm`: with the small vLLM, that takes so many seconds for a step;
        `dies`: it kills itself in the stage with this marker, as `helpers_zygote.die_in` says.
        """
        assert self.process.stdin is not None
        if not isinstance(recipe, str):
            path = self.log.with_name("recipe.yaml")
            path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            recipe = str(path)
        arguments = [command, recipe, "-q"]
        asked = {"arguments": arguments, "log": str(self.log), "clock": clock, "vllm": vllm, "dies": dies}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """The exit code of the last one; -9 where it was killed."""
        return int(self._answer()["status"])

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote") / "log.txt")
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


@dataclass(frozen=True)
class Tiny:
    """A whole run of a random model, undisturbed; its folder is free again."""

    recipe: dict[str, Any]
    folder: Path
    seconds: dict[str, float]
    files: dict[str, Any]


@pytest.fixture(scope="module")
def tiny_once(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Tiny:
    place = tmp_path_factory.mktemp("tiny")
    recipe, folder = tiny_recipe(place), place / "runs/run"
    zygote.start(recipe)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    seconds = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["durations"]
    files = contents(folder)
    drift = {score["metric"]: score["value"] for score in files["eval/sdft/drift/scores.json"]["scores"]}
    assert drift["kl"] > 0
    return Tiny(recipe, folder, seconds, files)


@pytest.fixture
def tiny(tiny_once: Tiny) -> Tiny:
    shutil.rmtree(tiny_once.folder, ignore_errors=True)
    return tiny_once


def marker_of(folder: Path, stage: str) -> Path:
    return folder / "stages" / f"{stage.replace('/', '.')}.json"


def state_of(folder: Path, stage: str) -> tuple[bool | None, tuple[int, int]]:
    """Whether a stage is finished, None where it was never begun; and what tells its markers from each other."""
    marker = marker_of(folder, stage)
    if not marker.exists():
        return None, (0, 0)
    told = marker.stat()
    return json.loads(marker.read_text(encoding="utf-8"))["finished"], (told.st_ino, told.st_mtime_ns)


def stop_in(
    zygote: Zygote, recipe: dict[str, Any], folder: Path, stage: str, delay: float, how: signal.Signals,
    clock: bool = False,
) -> int:  # fmt: skip
    """Run a recipe, and send a signal some seconds after it has begun a stage; the exit status.

    A stage that was finished before is not begun again: then so many seconds after the start.
    """
    finished, before = state_of(folder, stage)
    pid = zygote.start(recipe, clock=clock)
    deadline = time.monotonic() + 60
    while not finished and state_of(folder, stage)[1] == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    with suppress(ProcessLookupError):  # it has ended already
        os.kill(pid, how)
    return zygote.wait()


def differing(after: dict[str, Any], before: dict[str, Any]) -> list[str]:
    return sorted(name for name in after.keys() | before.keys() if after.get(name) != before.get(name))


@pytest.mark.slow
def test_killed_more_than_twenty_times_in_every_stage_a_run_ends_with_the_same_files(
    tiny: Tiny, zygote: Zygote
) -> None:
    draw = random.Random(0)
    kills = 0
    for stage in STAGES:
        at_random = [draw.random() * tiny.seconds[stage] for _ in range(2 * (stage in LONG))]
        for delay in (0.0, *at_random, None):  # its first file, whenever, all its files whole but not yet finished
            zygote.start(tiny.recipe, dies=(str(marker_of(tiny.folder, stage)), delay))
            assert zygote.wait() == -signal.SIGKILL, (stage, delay, zygote.log.read_text(encoding="utf-8"))
            begun = {name: state_of(tiny.folder, name)[0] for name in STAGES}
            assert [name for name, finished in begun.items() if finished is False] == [stage], (delay, begun)
            kills += 1
    assert kills >= 20 and {*STAGES} == {*tiny.seconds}
    zygote.start(tiny.recipe)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    assert differing(contents(tiny.folder), tiny.files) == []


def test_ctrl_c_while_a_model_writes_trains_and_is_measured(tiny: Tiny, zygote: Zygote) -> None:
    stopped = []
    for stage in ("distill", "train/sft", "eval/sft"):
        delay = 0.5 * tiny.seconds[stage]
        if status := stop_in(zygote, tiny.recipe, tiny.folder, stage, delay, signal.SIGINT):
            said = zygote.log.read_text(encoding="utf-8")
            assert status == 130 and said.endswith(" goes on from here\n") and "Traceback" not in said, said
            stopped.append(stage)
    zygote.start(tiny.recipe)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    assert len(stopped) >= 2, stopped
    assert differing(contents(tiny.folder), tiny.files) == []


def lines(path: Path) -> list[str]:
    return sorted(path.read_text(encoding="utf-8").splitlines()) if path.exists() else []


def kill_at(zygote: Zygote, pid: int, path: Path, count: int) -> int:
    """Kill a process once a file has so many lines; how many it has then."""
    deadline = time.monotonic() + 60
    while len(lines(path)) < count and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait() == -signal.SIGKILL, zygote.log.read_text(encoding="utf-8")
    assert len(lines(path)) >= count
    return len(lines(path))


def test_killed_while_vllm_writes_it_ends_with_the_same_rows(tmp_path: Path, zygote: Zygote) -> None:
    recipe = tiny_recipe(tmp_path)
    recipe["model"] |= {"device": "auto", "dtype": "auto"}
    recipe["distill"] |= {"engine": {"name": "vllm", "max_batch_size": 2}}
    path = tmp_path / "runs/run/distill/rewrites.jsonl"
    zygote.start(recipe, "distill", vllm=0.0)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    undisturbed = lines(path)
    assert len(undisturbed) >= 10
    shutil.rmtree(tmp_path / "runs")
    for count in (3, 7):
        pid = zygote.start(recipe, "distill", vllm=0.05)
        assert kill_at(zygote, pid, path, count) < len(undisturbed)
        assert wait_until_gone(pid, 20) == [], "vLLM's own process would hold the GPU's memory"
    zygote.start(recipe, "distill", vllm=0.0)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    assert lines(path) == undisturbed


def test_killed_while_a_server_answers_and_judges_each_row_and_judgement_is_there_once(
    tmp_path: Path, zygote: Zygote
) -> None:
    pytest.importorskip("openai")
    data_file("harmful_behaviors.csv")
    with serving() as server:
        server.seconds = 0.02
        asked = {"base_url": server.url, "max_concurrency": 4}
        engine = {"name": "openai", "models": {"seed": MODEL}, **asked}
        benchmark = {"name": "advbench", "limit": 60, "judge_model": {"model": MODEL, **asked}}
        recipe = scripted_recipe(
            tmp_path,
            model="org/model",
            prompt={"style": "chat"},
            evaluate={"engine": engine, "benchmarks": [benchmark]},
        )
        folder = tmp_path / "runs/run/eval/seed/advbench_raw"
        files = folder / "predictions.jsonl", folder / "judgements.jsonl"
        for path in files:
            assert kill_at(zygote, zygote.start(recipe, "eval"), path, 15) < 60
        zygote.start(recipe, "eval")
        assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    for path, key, counted in zip(files, ("id", "key"), ("requests.txt", "judge_requests.txt"), strict=True):
        assert len({json.loads(line)[key] for line in lines(path)}) == len(lines(path)) == 60
        assert 60 < len((folder / counted).read_text()) <= 60 + 4, "at most those in flight are asked for again"
    assert {json.loads(line)["finish"] for line in lines(files[0])} == {"stop"}
    manifest = json.loads((tmp_path / "runs/run/manifest.json").read_text(encoding="utf-8"))
    assert sum("lost in flight when the run was interrupted" in note for note in manifest["notes"]) == 2


def test_an_interrupted_run_is_moved_and_goes_on(tiny: Tiny, zygote: Zygote, tmp_path: Path) -> None:
    delay = 0.6 * tiny.seconds["train/sft"]
    assert stop_in(zygote, tiny.recipe, tiny.folder, "train/sft", delay, signal.SIGKILL) == -signal.SIGKILL
    moved = tmp_path / "elsewhere/renamed"
    moved.parent.mkdir()
    tiny.folder.rename(moved)
    zygote.start(str(moved))
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    assert not tiny.folder.exists()
    after = contents(moved)
    assert differing(after, tiny.files) == ["manifest.json", "recipe.yaml"]
    recipes = [files["manifest.json"]["recipe"] for files in (after, tiny.files)]
    assert differing(*recipes) == ["name", "output_dir"]


def test_a_clock_that_jumps_back_changes_nothing(tiny: Tiny, zygote: Zygote) -> None:
    draw = random.Random(2)
    for stage in ("distill", "train/sft"):
        stop_in(zygote, tiny.recipe, tiny.folder, stage, 0.5 * tiny.seconds[stage], signal.SIGKILL, clock=True)
        for path in tiny.folder.rglob("*"):  # the files' times in no order, too
            os.utime(path, (draw.uniform(0, 4e9),) * 2)
    zygote.start(tiny.recipe, clock=True)
    assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
    assert differing(contents(tiny.folder), tiny.files) == []
    state = json.loads((tiny.folder / "manifest.json").read_text(encoding="utf-8"))
    assert all(seconds >= 0 for seconds in state["durations"].values())


WALL_CLOCK = {
    "manifest.py": 1,  # when the run was made, for people
    "engines/_servers.py": 1,  # Retry-After as a date, from a server that does not tell its own time
    "benchmarks/_harness.py": 1,  # the harness wants a date in its config
}
"""Where the wall clock is read, how often, and what for. Durations and waits are `time.monotonic`'s."""


def test_nothing_else_reads_the_wall_clock_or_the_times_of_files() -> None:
    source = Path(sdft.__file__).parent
    pattern = re.compile(r"time\.time(?:_ns)?\(|datetime\.(?:now|utcnow|today)\(|st_[mc]time|getmtime|getctime")
    found = {
        path.relative_to(source).as_posix(): len(pattern.findall(path.read_text())) for path in source.rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == WALL_CLOCK


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


def resized(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_full_in_each_stage(tiny: Tiny, zygote: Zygote) -> None:
    tiny.folder.mkdir(parents=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "sdft-test", str(tiny.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    full: list[str] = []
    try:
        for command in ("distill", "select", "train", "eval", "analyze", "report"):
            for free in (4, 32):
                disk = os.statvfs(tiny.folder)
                resized(tiny.folder, (disk.f_blocks - disk.f_bfree) * disk.f_frsize + free * 1024)
                zygote.start(tiny.recipe, command)
                if (status := zygote.wait()) == 0:
                    break
                said = zygote.log.read_text(encoding="utf-8")
                assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
                assert said.endswith(
                    "the disk is full; what is done is kept: make room and give the same command again\n"
                )
                full.append(command)
            resized(tiny.folder, 64 << 20)
            zygote.start(tiny.recipe, command)
            assert zygote.wait() == 0, zygote.log.read_text(encoding="utf-8")
        assert set(full) == {"distill", "select", "train", "eval", "analyze", "report"}
        assert differing(contents(tiny.folder), tiny.files) == []
    finally:
        subprocess.run(["umount", str(tiny.folder)], check=True)


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
