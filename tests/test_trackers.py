"""`train.report_to`: transformers' own integrations, each with files on this machine alone.

MLflow is among what the tests install; the others draw dozens of packages: `make trackers-test` installs them, too, and
runs this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers_models import save_tiny_model
from helpers_pipeline import write_data
from sdft import pipeline
from sdft.console import Console
from sdft.rundir import read_json

MISSING = "{} is not installed: make trackers-test"


def trained(tmp_path: Path, tracker: str, redo: str | None = None, **changes: Any) -> Path:
    """A run's folder, with both trainings told to a tracker."""
    train = {"epochs": 1, "logging_steps": 1, "learning_rate": 0.01, "report_to": [tracker]}
    recipe = {
        "name": "mine",
        "output_dir": str(tmp_path / "runs"),
        "model": {"name": str(save_tiny_model(tmp_path / "tiny")), "device": "cpu"},
        "data": {"dataset": str(write_data(tmp_path / "sums.jsonl", 16))},
        "distill": {"engine": {"name": "scripted"}},
        "train": train | changes,
        "analyze": {"nll": False, "similarity": False, "weights": False},
    }
    return pipeline.run(recipe, console=Console(quiet=True), redo=redo).path


def losses(run: Path, method: str) -> list[float]:
    logged = read_json(run / f"train/{method}/trainer_state.json")["log_history"]
    found = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(found) > 1
    return found


def test_both_trainings_stand_in_mlflows_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason=MISSING.format("MLflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases want it said; a database needs more packages
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sdft")
    path = trained(tmp_path, "mlflow")
    found = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    [experiment] = [e for e in found.search_experiments() if e.name == "sdft"]
    runs = {run.info.run_name: run for run in found.search_runs([experiment.experiment_id])}
    assert set(runs) == {"mine-sft", "mine-sdft"}
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert float(run.data.params["learning_rate"]) == 0.01
        history = found.get_metric_history(run.info.run_id, "loss")
        assert [point.value for point in history] == losses(path, name.rpartition("-")[2])


def written(folder: Path) -> list[float]:
    """The losses in TensorBoard's files of one training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [event.value for event in events.Scalars("train/loss")]


def test_tensorboards_files_stay_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=MISSING.format("TensorBoard"))
    path = trained(tmp_path, "tensorboard")
    for method in ("sft", "sdft"):
        assert written(path / "tensorboard" / method) == pytest.approx(losses(path, method))
    assert {part.name for part in (path / "train").iterdir() if part.is_dir()} == {"sft", "sdft"}
    trained(tmp_path, "tensorboard", redo="train", learning_rate=0.02)  # both anew, and the old ones' files are gone
    for method in ("sft", "sdft"):
        assert written(path / "tensorboard" / method) == pytest.approx(losses(path, method))


def test_tensorboards_files_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason=MISSING.format("TensorBoard"))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    path = trained(tmp_path, "tensorboard")
    for method in ("sft", "sdft"):
        assert written(tmp_path / "logs" / f"mine-{method}") == pytest.approx(losses(path, method))
    assert not (path / "tensorboard").exists()


def test_each_training_is_a_run_of_its_own_at_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason=MISSING.format("Weights & Biases' package"))
    ended: dict[str, float] = {}
    finish = wandb.finish

    def noted() -> None:
        ended[wandb.run.name] = wandb.run.summary["train/loss"]
        finish()

    monkeypatch.setattr(wandb, "finish", noted)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    path = trained(tmp_path, "wandb")
    assert ended == {"mine-sft": losses(path, "sft")[-1], "mine-sdft": losses(path, "sdft")[-1]}
    assert wandb.run is None
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and all(file.stat().st_size for file in files)
