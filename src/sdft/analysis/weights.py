"""How far fine-tuning moved the weights, read from the files alone.

    model.layers.0.self_attn.q_proj   ‖ΔW‖ 0.41, of ‖W‖ 31.2: 1.3 %

All norms are Frobenius norms. For LoRA ΔW is B·A·scale, whose norm needs no more than products of rank × rank.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.errors import ModelError
from sdft.models import ModelConfig, adapter_folder, resolve

if TYPE_CHECKING:
    import torch

LORA = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>A|B|embedding_A|embedding_B)(?:\.weight)?$")


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """The change of one weight."""

    module: str
    norm: float
    """‖ΔW‖."""
    base_norm: float | None
    """‖W‖ of the seed; None where its files have no such weight."""

    @property
    def layer(self) -> int | None:
        """The first number in the module's path; None for embeddings, the head and the last norm."""
        found = re.search(r"\.(\d+)\.", self.module)
        return int(found.group(1)) if found else None


def weight_changes(seed: ModelConfig, folder: Path) -> list[ModuleChange]:
    """What training left in `folder` (an adapter, or a whole model) against the seed model's weights.

    Raises ModelError where a file is missing, or holds an adapter whose change is not B·A.
    """
    with ExitStack() as stack:
        base = _Weights(resolve(seed), stack)
        if (folder / "adapter_config.json").is_file():
            return [
                ModuleChange(name, _product_norm(a, b) * scale, base.norm(f"{name}.weight"))
                for name, a, b, scale in _lora(folder)
            ]
        before = (
            {name: (a, b, scale) for name, a, b, scale in _lora(adapter_folder(seed.adapter))} if seed.adapter else {}
        )
        return list(_differences(base, _Weights(folder, stack), before))


def by_layer(changes: Iterable[ModuleChange]) -> list[dict[str, Any]]:
    """Layer, ‖ΔW‖ over its changed weights, and that relative to their ‖W‖; in order."""
    layers: dict[int, list[ModuleChange]] = defaultdict(list)
    for change in changes:
        if change.layer is not None:
            layers[change.layer].append(change)
    return [{"layer": layer, **total(layers[layer])} for layer in sorted(layers)]


def total(changes: Iterable[ModuleChange]) -> dict[str, float | None]:
    """‖ΔW‖ over several weights, and relative to their ‖W‖: null where one is unknown."""
    changes = list(changes)
    norm = math.sqrt(math.fsum(change.norm**2 for change in changes))
    known = [change.base_norm for change in changes if change.base_norm is not None]
    base = math.sqrt(math.fsum(value**2 for value in known)) if len(known) == len(changes) else 0.0
    return {"norm": norm, "relative": norm / base if base else None}


class _Weights:
    """The tensors of a model folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path}: cannot be read ({error})") from None
            self.files |= dict.fromkeys(file.keys(), file)
        if not self.files:
            raise ModelError(f"{folder}: no *.safetensors weights")

    def get(self, name: str) -> torch.Tensor | None:
        """A tensor in float32, or None."""
        return self.files[name].get_tensor(name).float() if name in self.files else None

    def norm(self, name: str) -> float | None:
        """A tensor's norm, or None."""
        tensor = self.get(name)
        return None if tensor is None else float(tensor.norm())


def _differences(
    base: _Weights, tuned: _Weights, before: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
) -> Iterator[ModuleChange]:
    for name in sorted(tuned.files):
        new, old = tuned.get(name), base.get(name)
        if new is None or old is None or new.shape != old.shape:
            continue  # such as a head that is the embedding over again, and is saved by one of them alone
        module = name.removesuffix(".weight")
        if module in before:
            a, b, scale = before[module]
            old += scale * (b @ a)
        yield ModuleChange(module, float((new - old).norm()), float(old.norm()))


def _lora(folder: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, float]]:
    """Module, A (rank, in), B (out, rank) and scale of each pair of an adapter, in order of names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise ModelError(f"{folder}: the weight change is read from LoRA adapters, without DoRA, alone")
    path = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from None
    sides: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if found := LORA.match(name):
            sides[found["module"]][found["side"]] = tensor.float()
    for module in sorted(sides):
        pair = sides[module]
        if set(pair) != {"A", "B"}:
            raise ModelError(f"{path}: {module} has {', '.join(sorted(pair))}, not a plain pair of A and B")
        rank = _patterned(config.get("rank_pattern"), module, config["r"])
        alpha = _patterned(config.get("alpha_pattern"), module, config["lora_alpha"])
        yield module, pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _patterned(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """A setting that some modules have of their own: PEFT matches the end of the path."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _product_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖B·A‖ = sqrt(trace((BᵀB)(AAᵀ))): the product itself is as large as the weight."""
    a, b = a.double(), b.double()
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
