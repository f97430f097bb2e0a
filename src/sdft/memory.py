"""How much memory a model takes and a device has, found without loading either."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from sdft.models import ModelConfig

GIB = 1 << 30
DeviceName = Literal["cpu", "cuda", "mps"]

USUAL_TOKENS = 1536
"""Of prompt and reply together, for which room in the KV cache is reckoned."""
USABLE = 0.8
"""Share of the free memory that weights and cache may take."""
MOST_ROWS: dict[DeviceName, int] = {"cpu": 32, "mps": 32, "cuda": 256}
"""Rows decoded at once where memory does not limit them."""

IN_A_LAYER = re.compile(r"(?:^|\.)\d+\.")
"""In a weight's name: embeddings and the head have no number."""


def rows_that_fit(room: float, cache_bytes: int, device: DeviceName) -> int:
    """Rows to decode at once, from the bytes that their keys and values may take and those of one token."""
    return max(1, min(MOST_ROWS[device], int(room / (USUAL_TOKENS * cache_bytes))))


def guess_device(name: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> DeviceName:
    """The device that `auto` will come to, by the system's own word: torch is not asked."""
    if name != "auto":
        return name
    try:
        without_cuda = version("torch").endswith("+cpu")
    except PackageNotFoundError:
        without_cuda = True
    if not without_cuda and gpu_count() > 0:
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


def free_memory(device: DeviceName) -> int | None:
    """Bytes free on the first such device; None where the system does not tell."""
    return next(iter(_on_gpus("memory.free")), None) if device == "cuda" else _free_ram()


def _free_ram() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():  # of a container
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def gpu_count() -> int:
    """How many GPUs a process sees, by the system's own word: torch is not asked."""
    return len(_on_gpus("memory.free"))


def gpu_size() -> int | None:
    """Bytes of the first GPU, used ones included; None where there is none or the system does not tell."""
    return next(iter(_on_gpus("memory.total")), None)


def _on_gpus(field: Literal["memory.free", "memory.total"]) -> list[int | None]:
    """Bytes on each GPU that CUDA_VISIBLE_DEVICES leaves, in its order; None where the system does not tell."""
    there = _gpus(field)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not there:
        return list(there.values())
    seen: list[int | None] = []
    for name in map(str.strip, chosen.split(",")):
        if name.startswith("MIG-"):  # a part of a card
            seen.append(None)
        elif name.isdigit() and int(name) < len(there):
            seen.append(list(there.values())[int(name)])
        elif found := [uuid for uuid in there if name.startswith("GPU-") and uuid.startswith(name)]:
            seen.append(there[found[0]])
        else:  # CUDA hides this one, such as -1, and all that follow
            break
    return seen


def _gpus(field: Literal["memory.free", "memory.total"]) -> dict[str, int | None]:
    """By UUID, each GPU of this machine and its bytes, in the order of their numbers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    asked = subprocess.run(
        [tool, f"--query-gpu=uuid,{field}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    rows = [line.split(", ") for line in asked.stdout.splitlines() if line.startswith("GPU-")]
    return {uuid: int(size) << 20 if size.isdigit() else None for uuid, size in rows}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's memory depends on."""

    parameters: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int
    adaptable: int
    """Inputs and outputs of all matrices in the layers: the numbers of a LoRA adapter of rank 1 on each of them."""

    def weight_bytes(self, dtype: str, device: DeviceName) -> int:
        """Bytes of the weights as they are computed in."""
        return self.parameters * bytes_of(dtype, device)

    def splits_over(self, gpus: int) -> bool:
        """Whether each of so many GPUs can take the same number of attention heads, as tensor parallelism wants."""
        return self.heads % gpus == 0 and (self.kv_heads % gpus == 0 or gpus % self.kv_heads == 0)

    def cache_bytes(self, dtype: str, device: DeviceName) -> int:
        """Bytes of keys and values for one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * bytes_of(dtype, device)


def bytes_of(dtype: str, device: DeviceName) -> int:
    """Bytes of one number. `auto` on a CPU may come to bfloat16 or float32: the larger is reckoned with."""
    return {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype, 4 if device == "cpu" else 2)


def local_shape(config: ModelConfig) -> Shape | None:
    """The shape of a model whose files are at hand as a folder or in the hub's cache; None for others."""
    folder = Path(config.name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        if folder.suffix == ".gguf" or config.name.count("/") != 1:
            return None
        found = try_to_load_from_cache(config.name, "config.json", revision=config.revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return shape_of(folder)


def shape_of(folder: Path) -> Shape | None:
    """The shape of the model in a folder, from its config and the heads of its safetensors files."""
    path = folder / "config.json"
    files = sorted(folder.glob("*.safetensors"))
    if not path.is_file() or not files:
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    weights = [weight for file in files for weight in _weights(file)]
    try:
        heads = config["num_attention_heads"]
        return Shape(
            parameters=sum(math.prod(shape) for _, shape in weights),
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            hidden=config["hidden_size"],
            vocabulary=config["vocab_size"],
            adaptable=sum(sum(shape) for name, shape in weights if len(shape) == 2 and IN_A_LAYER.search(name)),
        )
    except KeyError:  # an architecture with other names
        return None


def _weights(file: Path) -> list[tuple[str, list[int]]]:
    """Name and shape of each weight in a safetensors file, by its header: its length in 8 bytes, then JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [(name, entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
