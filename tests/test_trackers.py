"""`train.report_to`: transformers' own integrations, with MLflow on a local file store.

MLflow is heavy (its smallest package draws a dozen others), so it is in none of the extras that the tests install:
`pip install 'sdft[mlflow]'` and run this file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers_models import save_tiny_model
from helpers_pipeline import write_data
from sdft import pipeline
from sdft.console import Console

pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'sdft[mlflow]'")


def test_both_trainings_stand_in_mlflows_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases want it said; a database needs more packages
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sdft")
    recipe = {
        "name": "mine",
        "output_dir": str(tmp_path / "runs"),
        "model": {"name": str(save_tiny_model(tmp_path / "tiny")), "device": "cpu"},
        "data": {"dataset": str(write_data(tmp_path / "sums.jsonl", 16))},
        "distill": {"engine": {"name": "scripted"}},
        "train": {"epochs": 1, "logging_steps": 1, "learning_rate": 0.01, "report_to": ["mlflow"]},
        "analyze": {"nll": False, "similarity": False, "weights": False},
    }
    path = pipeline.run(recipe, console=Console(quiet=True)).path
    import mlflow

    found = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    [experiment] = [e for e in found.search_experiments() if e.name == "sdft"]
    runs = {run.info.run_name: run for run in found.search_runs([experiment.experiment_id])}
    assert set(runs) == {"mine-sft", "mine-sdft"}
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert float(run.data.params["learning_rate"]) == 0.01
        history = found.get_metric_history(run.info.run_id, "loss")
        assert len(history) > 1
        from sdft.rundir import read_json

        method = name.rpartition("-")[2]
        logged = read_json(path / f"train/{method}/trainer_state.json")["log_history"]
        assert [point.value for point in history] == [entry["loss"] for entry in logged if "loss" in entry]
