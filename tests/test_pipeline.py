"""The stages in order: skipped, resumed, redone, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import contents, scripted_recipe, write_data
from sdft.needs import forecasts
from sdft.order import plan
from sdft.pipeline import check_all
from sdft.rundir import file_sha256, read_json
from sdft.stages import evaluate as evaluate_stage

ALL = ("data", "distill", "select", "eval/seed", "compare", "analyze", "report")


def rewrites(folder: Path) -> list[str]:
    return sorted((folder / "distill/rewrites.jsonl").read_text(encoding="utf-8").splitlines())


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    first = sdft.run(tree)
    assert first.done == ALL
    assert first.report.is_file()
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.name != ".lock"}
    assert sdft.run(tree).done == ()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_run_is_told_so_in_under_a_second_without_torch(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    sdft.run(tree)
    code = (
        f"import sys, time; started = time.process_time(); import sdft; result = sdft.run({tree!r}); "
        "print(result.done, time.process_time() - started < 1.0, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "() True False\n"


def test_a_run_folder_stands_for_its_recipe_wherever_it_was_moved(tmp_path: Path) -> None:
    folder = sdft.run(scripted_recipe(tmp_path)).path
    moved = folder.rename(tmp_path / "moved")
    assert sdft.run(moved).done == ()
    assert sdft.run(moved).path == moved


def test_a_changed_setting_is_refused_by_name_before_anything_is_touched(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    folder = sdft.run(tree).path
    before = contents(folder)
    with pytest.raises(sdft.RunError, match=r"distill\.temperature: 0\.95 → 0\.5.*name=NAME.*--redo distill"):
        sdft.run(tree, ["distill.temperature=0.5"])
    assert contents(folder) == before
    assert sdft.run(tree, ["distill.temperature=0.5", "name=other"]).done == ALL


def test_settings_that_only_change_the_speed_are_not_refused(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    sdft.run(tree)
    assert sdft.run(tree, ["distill.engine.latency=0.5"]).done == ()


def test_redo_makes_a_stage_and_all_that_follows_anew_and_nothing_else(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    folder = sdft.run(tree).path
    before = contents(folder)
    assert sdft.run(tree, redo="distill").done == ("distill", "select", "analyze", "report")
    assert contents(folder) == before
    assert sdft.run(tree, redo="eval").done == ("eval/seed", "compare", "analyze", "report")
    changed = sdft.run(tree, ["distill.temperature=0.5"], redo="distill")
    assert "distill" in changed.done
    before = contents(folder)
    with pytest.raises(sdft.RunError, match=r"stage 'eval/seed' was made with other settings"):
        sdft.run(tree, ["distill.temperature=0.9", "model.dtype=float32"], redo="distill")
    with pytest.raises(sdft.RunError, match="`sdft eval` does not do that stage"):
        sdft.run(tree, ["distill.temperature=0.5"], redo="distill", only="eval")
    assert contents(folder) == before, "nothing is deleted where the call is refused"
    with pytest.raises(sdft.RunError, match=r"--redo destill: there is no such stage; did you mean 'distill'\?"):
        sdft.run(tree, redo="destill")


def test_other_checks_are_selected_anew_and_missing_candidates_added(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    tree["select"]["checks"] = ["leak"]
    folder = sdft.run(tree).path
    few = rewrites(folder)
    assert len(few) == 12
    tree["select"]["checks"] = ["leak", "number"]
    assert sdft.run(tree).done == ("distill", "select", "compare", "analyze", "report")
    many = rewrites(folder)
    assert len(many) == 24
    assert set(few) < set(many)
    fresh = sdft.run({**tree, "name": "fresh"}).path
    for name in ("select/choices.jsonl", "select/summary.json"):
        assert contents(folder)[name] == contents(fresh)[name]


def test_a_benchmark_can_be_added_without_measuring_the_others_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = scripted_recipe(tmp_path)
    sdft.run(tree)
    asked: list[str] = []
    original = evaluate_stage.evaluate

    def noting(benchmark: Any, *args: Any, **more: Any) -> Any:
        asked.append(benchmark.label or benchmark.name)
        return original(benchmark, *args, **more)

    monkeypatch.setattr(evaluate_stage, "evaluate", noting)
    tree["evaluate"]["benchmarks"].append({"name": "drift", "label": "again", "limit": 3})
    assert sdft.run(tree).done == ("eval/seed", "compare", "analyze", "report")
    assert asked == ["again"]
    tree["evaluate"]["benchmarks"][0]["limit"] = 4
    with pytest.raises(sdft.RunError, match=r"evaluate\.benchmarks\.drift\.limit: 5 → 4"):
        sdft.run(tree)
    del tree["evaluate"]["benchmarks"][0]["limit"]
    with pytest.raises(sdft.RunError, match=r"evaluate\.benchmarks\.drift\.limit: 5 → "):
        sdft.run(tree)


def test_stages_alone_want_what_they_read_from(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, methods=["sdft"])
    with pytest.raises(sdft.RunError, match="stage 'distill', which 'select' reads from, is not finished"):
        sdft.run(tree, only="select")
    assert sdft.run(tree, only="distill").done == ("data", "distill")
    with pytest.raises(sdft.RunError, match="stage 'select', which 'train/sdft' reads from"):
        sdft.run(tree, only="train")
    assert sdft.run(tree, only="select").done == ("select",)
    with pytest.raises(sdft.RunError, match="train/sdft"):
        sdft.run(tree, only="eval")
    with pytest.raises(sdft.RunError, match=r"stage 'select' was made with other settings \(select\.checks"):
        sdft.run(tree, ["select.checks=[leak]"], only="train")
    assert sdft.run(tree, only="report").done == ("report",)


def test_vanilla_training_does_not_depend_on_rewrites(tmp_path: Path) -> None:
    def inputs(*overrides: str) -> dict[str, Any]:
        recipe = sdft.load_recipe(scripted_recipe(tmp_path, methods=["sft", "sdft"]), overrides)
        return {stage.name: stage.inputs for stage in plan(recipe)}

    base = inputs()
    for override in ("distill.temperature=0.5", "select.checks=[leak]", "prompt.distill=alpaca_distill_refer"):
        changed = inputs(override)
        assert changed["train/sft"] == base["train/sft"]
        assert changed["eval/sft"] == base["eval/sft"]
        assert changed["eval/seed"] == base["eval/seed"]
        assert changed["train/sdft"] != base["train/sdft"]
        assert changed["eval/sdft"] != base["eval/sdft"]
    for override in ("data.limit=5", "train.epochs=1", "seed=1", "prompt.train=gsm8k", "model.dtype=float32"):
        assert inputs(override)["train/sft"] != base["train/sft"]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    slow = {**tree, "distill": {**tree["distill"], "engine": {"name": "scripted", "latency": 5.0}}}
    with subprocess.Popen([sys.executable, "-c", f"import sdft; sdft.run({slow!r})"]) as process:
        lock = tmp_path / "runs/run/.lock"
        deadline = time.monotonic() + 30
        while not (lock.exists() and lock.read_text() == str(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            with pytest.raises(sdft.RunError, match=f"another process .pid {process.pid}. works on this run"):
                sdft.run(tree)
        finally:
            process.kill()
    assert sdft.run(tree).done[-1] == "report"


def test_what_is_missing_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDFT_DATA_DIR", "")
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    tree = scripted_recipe(tmp_path)
    tree["evaluate"]["benchmarks"] = ["gsm8k", "openfunction"]
    with pytest.raises(sdft.RecipeError, match="gsm8k_test") as raised:
        sdft.run(tree)
    assert len(raised.value.problems) == 2
    assert not (tmp_path / "runs/run/data").exists()


def test_the_manifest_tells_what_a_run_was_made_with(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    tree["distill"]["engine"]["fail_every"] = 6
    folder = sdft.run(tree).path
    manifest = read_json(folder / "manifest.json")
    assert manifest["sdft"] == sdft.__version__
    assert manifest["recipe"] == sdft.load_recipe(folder / "recipe.yaml").model_dump(mode="json")
    assert set(manifest["durations"]) == set(ALL)
    assert manifest["versions"]["torch"]
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["hashes"]["select/choices.jsonl"] == file_sha256(folder / "select/choices.jsonl")
    assert "distill: 4 replies failed: scripted fault" in manifest["notes"]
    created = manifest["created"]
    sdft.run(tree, redo="report")
    assert read_json(folder / "manifest.json")["created"] == created


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    sampling = {"max_new_tokens": 2}
    evaluate = {"engine": "transformers", "sampling": sampling, "benchmarks": [{"name": "drift", "limit": 2}]}
    tree = scripted_recipe(tmp_path, model=str(model), evaluate=evaluate)
    folder = sdft.run(tree).path
    known = read_json(folder / "manifest.json")["weights"]
    assert known == {
        "name": str(model), "source": "folder", "sha256": file_sha256(model / "model.safetensors")
    }  # fmt: skip
    save_tiny_model(model, seed=1)
    with pytest.raises(sdft.RunError, match=r"stage 'eval/seed' was made with other weights of .*model"):
        sdft.run(tree | {"methods": ["sft"]})
    assert not (folder / "train").exists()
    sdft.run(tree, redo="eval")
    assert read_json(folder / "manifest.json")["weights"]["sha256"] == file_sha256(model / "model.safetensors")


def test_a_dry_run_in_chat_style_takes_the_models_own_template(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path, model=str(save_tiny_model(tmp_path / "model")), prompt={"style": "chat"})
    tree["distill"]["engine"] = {"name": "scripted", "replies": {"<|im_start|>assistant": "It is {seed}."}}
    texts = [json.loads(line)["text"] for line in rewrites(sdft.run(tree).path)]
    assert texts
    assert all(text.startswith("It is ") for text in texts)


def test_bad_rows_that_are_left_out_are_noted(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    with Path(tree["data"]["dataset"]).open("a", encoding="utf-8") as file:
        file.write('{"instruction": "", "output": "4"}\n')
    with pytest.raises(sdft.DataError, match=r"data\.jsonl:13"):
        sdft.run(tree)
    folder = sdft.run(tree, ["data.on_bad_rows=skip"], redo="data").path
    notes = read_json(folder / "manifest.json")["notes"]
    [note] = [note for note in notes if not note.startswith("select: only")]
    assert note.startswith("data: 1 bad row left out, such as ")


@pytest.mark.parametrize(
    "lost",
    ["data/train.jsonl", "distill/rewrites.jsonl", "select/choices.jsonl", "eval/seed/drift/predictions.jsonl",
     "eval/comparisons.json", "report/report.html"],
)  # fmt: skip
def test_what_was_deleted_from_a_finished_run_is_made_again(tmp_path: Path, lost: str) -> None:
    tree = scripted_recipe(tmp_path)
    folder = sdft.run(tree).path
    before = contents(folder)
    (folder / lost).unlink()
    assert sdft.run(tree).done
    assert (folder / lost).is_file()
    assert contents(folder) == before


def test_the_way_out_that_an_error_names_is_one(tmp_path: Path) -> None:
    folder = sdft.run(scripted_recipe(tmp_path)).path
    (folder / "distill/rewrites.jsonl").unlink()
    with pytest.raises(
        sdft.RunError, match="stage 'distill', which 'select' reads from, is not finished, or its files"
    ):
        sdft.run(folder, only="select", redo="select")
    assert sdft.run(folder, only="distill").done == ("distill",)
    assert "select" in sdft.run(folder, only="select", redo="select").done


def test_a_marker_that_is_none_is_named(tmp_path: Path) -> None:
    folder = sdft.run(scripted_recipe(tmp_path)).path
    (folder / "stages/distill.json").write_text("{}", encoding="utf-8")
    with pytest.raises(sdft.RunError, match=r"distill\.json: not a stage's marker; delete it"):
        sdft.run(folder)
    marker = {"inputs": {}, "digest": "", "finished": True}
    (folder / "stages/distill.json").write_text(json.dumps(marker), encoding="utf-8")
    with pytest.raises(sdft.RunError, match=r"distill\.json: of an earlier sdft"):
        sdft.run(folder)


def test_a_data_file_that_was_edited_since_is_refused_by_name(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    folder = sdft.run(tree).path
    data = tmp_path / "data.jsonl"
    stat = data.stat()
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert sdft.run(tree).done == ()  # touched, but the same
    with data.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "20 plus 4 is", "output": "24"}\n')
    with pytest.raises(sdft.RunError, match=r"data\.jsonl has changed since this run read it.*--redo data"):
        sdft.run(tree)
    assert sdft.run(tree, redo="data").done[0] == "data"
    assert len((folder / "data/train.jsonl").read_text(encoding="utf-8").splitlines()) == 13
    data.unlink()
    assert sdft.run(folder).done == ()  # the run has its own copy


def test_data_that_is_not_here_is_no_error_before_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDFT_DATA_DIR", "")
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    asked: list[object] = []
    monkeypatch.setattr("sdft.data.registry.download", lambda *args: asked.append(args))
    tree = scripted_recipe(
        tmp_path, data={"dataset": "gsm8k_train"}, evaluate={"engine": "scripted", "benchmarks": ["gsm8k"]}
    )
    recipe, _ = check_all(tree)
    data, benchmark = forecasts(recipe)
    assert data.startswith("data: gsm8k_train: gsm8k/gsm8k_train.json is neither")
    assert benchmark.startswith("benchmark 'gsm8k': gsm8k_test: gsm8k/gsm8k_test.json is neither")
    assert not asked


def test_rows_of_ones_own_are_a_test(tmp_path: Path) -> None:
    tree = scripted_recipe(tmp_path)
    test = write_data(tmp_path / "test.jsonl", 30)
    own = {"name": "dataset", "label": "mine", "data": {"dataset": str(test), "split": "train[10:]"}, "check": "number"}
    tree["evaluate"] = {"engine": {"name": "scripted", "default": "It is 14."}, "benchmarks": [own]}
    folder = sdft.run(tree).path
    scores = json.loads((folder / "eval/seed/mine/scores.json").read_text(encoding="utf-8"))
    [score] = scores["scores"]
    assert (scores["benchmark"], score["metric"], score["n"], score["value"]) == ("dataset", "accuracy", 20, 1 / 20)
    assert sdft.run(tree).done == ()
    with test.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "90 plus 4 is", "output": "94"}\n')
    with pytest.raises(sdft.RunError, match=r"test\.jsonl has changed since this run read it.*--redo eval"):
        sdft.run(tree)
    sdft.run(tree, redo="eval")
    scores = json.loads((folder / "eval/seed/mine/scores.json").read_text(encoding="utf-8"))
    assert scores["n"] == 21
