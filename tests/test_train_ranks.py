"""Training in several processes: two over gloo learn what one learns with twice the accumulation."""

from __future__ import annotations

import json
import os
import re
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
from sdft.models import ModelConfig, load_model
from sdft.rundir import read_json

CONFIGURATIONS = Path(__file__).parents[1] / "accelerate"
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


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, str]]:
    """The arguments that `accelerate launch` comes to with a file of accelerate/, and what it gives the processes."""
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = str(CONFIGURATIONS / name)
    more = ["--main_process_ip", "127.0.0.1"] if "2x8" in name else []
    args = launch_command_parser().parse_args(["--config_file", path, *more, "-m", "sdft", "train", "recipe.yaml"])
    config = load_config_from_file(path)  # refuses unknown keys; those of the parts below are taken as they are
    assert {*config.fsdp_config, *config.deepspeed_config} <= {*vars(args)}
    args, _, _ = _validate_launch_command(args)
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # as the command sets it, which wants deepspeed first
        return args, prepare_deepspeed_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


@pytest.mark.parametrize(
    ("name", "machines", "each"),
    [("ddp-8.yaml", 1, 8), ("deepspeed-zero2-8.yaml", 1, 8), ("fsdp2-8.yaml", 1, 8), ("fsdp2-2x8.yaml", 2, 8)],
)
def test_accelerate_takes_the_configurations(
    name: str, machines: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, given = launched(name, monkeypatch)
    assert (args.num_machines, args.num_processes, args.nproc_per_node) == (machines, machines * each, str(each))
    assert given["ACCELERATE_MIXED_PRECISION"] == "bf16"
    count = {1: "one machine", 2: "two machines"}[machines]
    docs = (CONFIGURATIONS.parent / "docs/cluster.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {count} of {each} GPUs" in docs
    assert given.get("ACCELERATE_USE_FSDP") == ("true" if "fsdp" in name else None)
    assert given.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == ("2" if "zero2" in name else None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["fsdp2-8.yaml", "fsdp2-2x8.yaml"])
def test_accelerates_plugin_takes_what_the_fsdp2_files_say(
    name: str, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from peft import LoraConfig, get_peft_model

    _, given = launched(name, monkeypatch)
    for variable in (key for key in given if key.startswith("FSDP_")):
        monkeypatch.setenv(variable, given[variable])
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert (plugin.state_dict_type.name, plugin.activation_checkpointing) == ("FULL_STATE_DICT", False)
    plain = load_model(ModelConfig(name=tree["model"]["name"], device="cpu"))
    layer = plain.model.layers[0]
    for model in (plain, get_peft_model(plain, LoraConfig(target_modules=["q_proj"]))):
        wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
        assert wraps(layer) and not wraps(layer.mlp)


def test_each_configuration_is_in_the_docs() -> None:
    docs = (CONFIGURATIONS.parent / "docs/cluster.md").read_text(encoding="utf-8")
    assert {path.name for path in CONFIGURATIONS.iterdir()} == set(re.findall(r"^\| `(\S+\.yaml)` \|", docs, re.M))
