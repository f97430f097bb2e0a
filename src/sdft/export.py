"""A run's result in a form to be used elsewhere: an adapter, a whole model, a GGUF file, or the distilled dataset.

Each goes with a card that says what it was made from, how, how good it is, and what is not known of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdft import cards
from sdft.errors import ModelError, RunError
from sdft.models import ModelConfig, hub_errors, load_model, load_tokenizer, resolve, trained
from sdft.order import plan
from sdft.pipeline import find, is_run
from sdft.recipe import Method, Recipe
from sdft.rundir import RunDir, read_json

OWN_FILES = {"training.json", "trainer_state.json", "loss.png"}
"""What training leaves beside the weights, for the run alone."""
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf.py", "convert-hf-to-gguf")
"""What llama.cpp's converter is called, as a script of its repository and as installed by packages."""
DTYPES = ("bfloat16", "float16", "float32")


def open_run(run: str) -> tuple[Recipe, Path]:
    """A run's recipe and folder. Raises RunError where no run stands there."""
    recipe, folder = find(run)
    if not is_run(folder):
        raise RunError(f"{folder}: no run stands here; `sdft run` the recipe first")
    return recipe, folder


def trained_model(recipe: Recipe, folder: Path, method: Method) -> ModelConfig:
    """What a method's training left. Raises RunError where it is not finished."""
    if not (folder / f"train/{method}/training.json").is_file():
        there = sorted(path.parent.name for path in folder.glob("train/*/training.json"))
        raise RunError(
            f"{folder}: method '{method}' is not trained here (trained: {', '.join(there) or 'none'}); "
            "`sdft run` the recipe first, or name another with --method"
        )
    stage = next((stage for stage in plan(recipe) if stage.name == f"train/{method}"), None)
    if stage is not None:  # else the card would tell of other settings than the weights were made with
        RunDir(folder).check(stage.name, stage.inputs, stage.mild)
    return trained(recipe.model, folder / f"train/{method}")


def export_adapter(run: str, method: Method, out: Path | None, licence: str | None) -> Path:
    """Copy what training left (an adapter, or a whole model) with tokenizer and card. Raises RunError."""
    recipe, folder = open_run(run)
    trained_model(recipe, folder, method)
    target = out or folder / "export" / method
    with _made(target, out is None) as part:
        for path in sorted((folder / f"train/{method}").iterdir()):
            if path.is_file() and path.name not in OWN_FILES:
                shutil.copy2(path, part / path.name)
        form: cards.Form = "adapter" if (part / "adapter_config.json").is_file() else "model"
        _write_card(part, cards.model_card(recipe, folder, method, form, licence))
    return target


def export_merged(run: str, method: Method, out: Path | None, licence: str | None) -> Path:
    """Write the tuned model whole, as safetensors in the seed's own dtype. Raises RunError and ModelError."""
    recipe, folder = open_run(run)
    config = trained_model(recipe, folder, method)
    target = out or folder / "export" / f"{method}-merged"
    with _made(target, out is None) as part:
        _merge(recipe, config, part)
        _write_card(part, cards.model_card(recipe, folder, method, "model", licence))
    return target


def export_gguf(run: str, method: Method, out: Path | None, licence: str | None) -> Path:
    """Write the tuned model as a GGUF file, with llama.cpp's own converter. Raises RunError and ModelError."""
    command = gguf_converter()
    recipe, folder = open_run(run)
    config = trained_model(recipe, folder, method)
    target = out or folder / "export" / f"{method}-gguf"
    with _made(target, out is None) as part:
        whole = part / "whole"
        whole.mkdir()
        _merge(recipe, config, whole)
        file = part / f"{recipe.name}-{method}.gguf"
        done = subprocess.run(
            [*command, str(whole), "--outfile", str(file)], capture_output=True, text=True, check=False
        )
        if done.returncode or not file.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "it wrote nothing").splitlines()[-1]
            hint = "; the packages that it needs are in llama.cpp's requirements.txt" * ("No module named" in said)
            raise ModelError(f"{' '.join(command)}: cannot convert the model ({said}){hint}")
        shutil.rmtree(whole)
        _write_card(part, cards.model_card(recipe, folder, method, "gguf", licence))
    return target


def export_dataset(run: str, out: Path | None, licence: str | None) -> Path:
    """Copy the distilled dataset in both forms, with its card. Raises RunError where nothing is selected yet."""
    recipe, folder = open_run(run)
    if not (folder / "select/summary.json").is_file():
        raise RunError(f"{folder}: there is no distilled dataset yet; `sdft select {run}` makes it")
    target = out or folder / "export/dataset"
    with _made(target, out is None) as part:
        shutil.copy2(folder / "select/distilled.messages.jsonl", part / "train.jsonl")
        shutil.copy2(folder / "select/distilled.jsonl", part / "rows.jsonl")
        _write_card(part, cards.dataset_card(recipe, folder, licence))
    return target


@contextmanager
def _made(target: Path, own: bool) -> Iterator[Path]:
    """A folder that stands at its place when it is whole. One that is `own` replaces an older one."""
    if not own and target.exists() and any(target.iterdir() if target.is_dir() else (target,)):
        raise RunError(f"{target}: is there already; name another folder with --out, or delete it")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text, encoding="utf-8")


def _merge(recipe: Recipe, config: ModelConfig, folder: Path) -> None:
    stored = read_json(resolve(recipe.model) / "config.json")
    named = stored.get("dtype") or stored.get("torch_dtype")
    model = load_model(config.model_copy(update={"device": "cpu"}), named if named in DTYPES else "bfloat16")
    model.save_pretrained(folder)
    load_tokenizer(config).save_pretrained(folder)


def gguf_converter() -> list[str]:
    """The command of llama.cpp's converter: from the folder in LLAMA_CPP, or on the PATH. Raises ModelError."""
    place = os.environ.get("LLAMA_CPP")
    found = [Path(place).expanduser() / name for name in CONVERTERS if place]
    script = next((path for path in found if path.is_file()), None)
    for name in CONVERTERS if script is None else ():
        if there := shutil.which(name):
            return [there]
    if script is None:
        raise ModelError(
            f"--gguf needs llama.cpp's converter {CONVERTERS[0]}, which is neither on the PATH nor in the folder "
            "LLAMA_CPP; git clone https://github.com/ggml-org/llama.cpp, then export LLAMA_CPP=llama.cpp"
        )
    return [sys.executable, str(script)]


def check_hub_name(name: str) -> None:
    """Raise RunError where a repository cannot be called so."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise RunError(f"--push {name}: a hub repository is written user/name")


def push(folder: Path, name: str, kind: str, public: bool) -> str:
    """Upload a folder into a hub repository, made where it is not there; returns its address. Raises RunError.

    `kind` is `model` or `dataset`. A new repository is private, unless `public`.
    """
    from huggingface_hub import HfApi

    check_hub_name(name)
    api: Any = HfApi()
    try:
        address = api.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, repo_type=kind, commit_message="Upload from sdft")
    except hub_errors() as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"--push {name}: the hub refuses it, or cannot be reached ({what}); log in with `hf auth login`, with a "
            f"token that may write. What was exported stands in {folder}"
        ) from None
    return str(address)
