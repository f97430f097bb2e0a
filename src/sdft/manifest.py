"""`manifest.json`: what a run was made with, so that it can be made again."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdft.recipe import Recipe
from sdft.rundir import RunDir, read_json, write_json

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "vllm",
)


def write_manifest(run: RunDir, recipe: Recipe, stages: Iterable[str], stale: Sequence[str] = ()) -> None:
    """Write the manifest from the markers of those stages that are finished; `stale` are further notes."""
    path = run / "manifest.json"
    states = {stage: run.stage_state(stage) for stage in stages}
    finished = {stage: state for stage, state in states.items() if state and state["finished"]}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(
        path,
        {
            "sdft": version("sdft"),
            "name": recipe.name,
            "created": read_json(path)["created"] if path.exists() else now,
            "recipe": recipe.model_dump(mode="json"),
            "versions": versions(),
            "hardware": hardware(),
            "weights": next((state["weights"] for state in finished.values() if state.get("weights")), None),
            "hashes": {file: sha for state in finished.values() for file, sha in state["hashes"].items()},
            "seed": recipe.seed,
            "durations": {stage: state["seconds"] for stage, state in finished.items()},
            "notes": [*stale, *(note for state in finished.values() for note in state["notes"])],
        },
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """System, processor, cores that may be used, memory in bytes, and NVIDIA GPUs by name."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    gpus: list[str] = []
    if tool := shutil.which("nvidia-smi"):
        asked = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=30)
        gpus = [line.partition(" (UUID")[0] for line in asked.stdout.splitlines() if line.startswith("GPU")]
    return {
        "system": platform.platform(),
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
    }
