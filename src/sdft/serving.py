"""`sdft serve`: `vllm serve` on this machine, with a recipe's model and a run's adapters, for the engine `openai`.

From Python, for as long as a block runs:

    with sdft.serve("runs/mine") as server:
        print(server.base_url, server.models)

The command `vllm` is taken from SDFT_VLLM (`/opt/vllm/bin/vllm`, another environment's), else from the PATH. The server
listens on 127.0.0.1 alone, without a key.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdft.console import SILENT_SECONDS, Console, duration
from sdft.engines.vllm import QUIET, lora_modules, lora_room
from sdft.errors import RunError
from sdft.memory import gpu_count, guess_device
from sdft.models import ModelConfig, adapter_folder, pick_dtype, resolve
from sdft.pipeline import find, is_run
from sdft.recipe import Method, Recipe

HOST = "127.0.0.1"
PATIENCE = 1800.0
"""Seconds that the server may take to load the model."""
POLL = 0.1
STOPPING = 20.0
"""Seconds that the server gets to end by itself."""
TAIL = 25
"""Lines of the server's log that an error shows."""
LEADER = """
import os, signal, sys
pipe, command = int(sys.argv[1]), sys.argv[2:]
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)
os.close(pipe)
os.execvp(command[0], command)
"""
"""Becomes `vllm`, and leaves a watchman beside it, who waits for the end of a pipe that this process alone holds open
and then kills the group that both are in.

So the server ends with this process however that ends, and from the first moment on. Linux could signal a child whose
parent dies (PR_SET_PDEATHSIG), but that child alone, and what vLLM starts goes on without it. As the watchman is of the
group, the group's number cannot be another's by then.
"""


@dataclass(frozen=True)
class Served:
    """What a server is to serve."""

    folder: Path
    """The model's weights."""
    config: ModelConfig
    name: str
    """What the server calls the model."""
    adapters: dict[str, Path]
    """By the names that the server knows them by, which are the run's own: `sft`, `sdft`."""
    models: dict[str, str]
    """As the recipe's `evaluate.engine.models` wants it."""


@dataclass(frozen=True)
class Server:
    """A running `vllm serve`."""

    base_url: str
    models: dict[str, str]
    """The recipe's name for each model → the server's."""
    log: Path
    """What the server says. Removed when it is stopped; it stays where this process is killed."""
    process: subprocess.Popen[bytes]

    def lines(self) -> str:
        """What a recipe has to say to use this server."""
        engine: dict[str, Any] = {"name": "openai", "base_url": self.base_url}
        told = {"seed": self.models["seed"]} if "seed" in self.models else {}
        sections = {"distill": engine | ({"models": told} if told else {})}
        sections |= {"evaluate": engine | ({"models": self.models} if self.models else {})}
        return "".join(
            f"{section}:\n  engine: {yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)}"
            for section, value in sections.items()
        )

    def wait(self) -> None:
        """Return when the server ends by itself. Raises RunError, as it should not."""
        code = self.process.wait()
        raise RunError(f"vllm serve has ended{_why(code)}; the end of its log:\n{_tail(self.log)}")


@contextmanager
def serve(
    source: str,
    overrides: Sequence[str] = (),
    *,
    method: Method | None = None,
    port: int | None = None,
    arguments: Sequence[str] = (),
    patience: float = PATIENCE,
    console: Console | None = None,
) -> Iterator[Server]:
    """Serve a recipe's model or a run's, with what was trained, until the block ends, or this process does.

    `method` serves that tuned model alone beside the seed. `arguments` go to `vllm serve` as they are. Raises RunError
    where there is no `vllm`, the port is taken or another server answers there, or where ours ends, wants a key, or
    does not answer within `patience` seconds.
    """
    if ours := [name for word in arguments if (name := word.partition("=")[0]) in OURS]:
        raise RunError(f"{ours[0]}: is set here and cannot be given to vllm serve; {OURS[ours[0]]}")
    served = what_to_serve(*find(source, overrides), method)
    vllm = vllm_command()
    port = _free_port(port)
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="sdft-serve-") as place:
        log = Path(place) / "vllm.log"
        console.say(f"starting vllm for {source}; its log is {log}")
        with _started([*vllm, *serve_arguments(served, port), *arguments], log, console) as process:
            _wait_for(process, port, {served.name, *served.adapters}, log, patience, console)
            try:
                yield Server(f"http://{HOST}:{port}/v1", served.models, log, process)
            except Exception as error:  # often that nothing answers, as the server has died
                if (code := process.poll()) is not None:
                    error.add_note(f"vllm serve has ended{_why(code)}; the end of its log:\n{_tail(log)}")
                raise


@contextmanager
def _started(command: Sequence[str], log: Path, console: Console) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own, which ends with the block, and with this process."""
    watched, held = os.pipe()
    try:
        try:
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-IS", "-c", LEADER, str(watched), *command], stdin=subprocess.DEVNULL, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[watched], env=_environment(),
                )  # fmt: skip
        finally:
            os.close(watched)
        try:
            yield process
        finally:
            if process.poll() is None:
                with suppress(OSError):  # the terminal may be gone
                    console.say("stopping vllm")
            _stop(process)
    finally:
        os.close(held)


def _environment() -> dict[str, str]:
    """This one, without a key that would shut us out of our own server on loopback."""
    given = {"VLLM_NO_USAGE_STATS": QUIET["VLLM_NO_USAGE_STATS"], **os.environ}
    given.pop("VLLM_API_KEY", None)
    return given


def what_to_serve(recipe: Recipe, folder: Path, method: Method | None) -> Served:
    """The seed, and beside it what the run at `folder` has trained. Raises RunError and ModelError."""
    there = sorted(path.parent.name for path in folder.glob("train/*/training.json")) if is_run(folder) else []
    if method is not None and method not in there:
        raise RunError(
            f"{folder}: method '{method}' is not trained here (trained: {', '.join(there) or 'none'}); "
            "`sdft train` the recipe first"
        )
    methods = there if method is None else [method]
    whole = [name for name in methods if not (folder / f"train/{name}/adapter_config.json").is_file()]
    seed = recipe.model
    if whole and method is None:
        raise RunError(
            f"{folder}: all weights of {', '.join(whole)} were trained, so each takes a server of its own: name one "
            "with --method"
        )
    if whole:
        path = folder / f"train/{method}"
        config = seed.model_copy(update={"name": str(path), "revision": None, "adapter": None})
        return Served(path, config, str(method), {}, {str(method): str(method)})
    adapters = {name: (folder / f"train/{name}").resolve() for name in methods}
    models = {name: name for name in methods}
    if seed.adapter:
        adapters, models = {"seed": adapter_folder(seed.adapter).resolve(), **adapters}, {"seed": "seed", **models}
    return Served(resolve(seed), seed, seed.name, adapters, models)


ERROR_LINE = re.compile(r"(^|\] )[\w.]*(Error|Exception): .")
"""How Python ends a traceback, and a logger repeats it behind its own words."""
OURS = {
    "--host": "it serves on 127.0.0.1 alone",
    "--port": "name the port with sdft's own --port",
    "--served-model-name": "the model is called as the recipe calls it",
    "--api-key": "on 127.0.0.1 it asks for none",
}
"""Options of `vllm serve` that stand fixed, and why."""
WHOLE_PROMPTS = "--no-enable-chunked-prefill"
"""On a processor vLLM 0.32 dies of a sampled request with a seed whose prompt it reads in several pieces."""


def vllm_command() -> list[str]:
    """The command that is vLLM. Raises RunError where there is none."""
    named = shlex.split(os.environ.get("SDFT_VLLM", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise RunError(f"SDFT_VLLM: {named[0]} is no command; name one such as /opt/vllm/bin/vllm")
        return named
    beside = Path(sys.executable).with_name("vllm")  # of an environment that is not activated
    found = shutil.which("vllm") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise RunError(
            "there is no command `vllm`: pip install 'vllm>=0.32', or name another environment's, such as "
            "SDFT_VLLM=/opt/vllm/bin/vllm"
        )
    return [found]


def serve_arguments(served: Served, port: int) -> list[str]:
    """What follows `vllm`."""
    arguments = ["serve", str(served.folder), "--host", HOST, "--port", str(port), "--served-model-name", served.name]
    if dtype := _dtype(served.config):
        arguments += ["--dtype", dtype]
    if _on_cpu(served.config):
        arguments.append(WHOLE_PROMPTS)
    if served.config.trust_remote_code:
        arguments.append("--trust-remote-code")
    if served.adapters:
        rank = lora_room(served.adapters.values())
        arguments += ["--enable-lora", "--max-loras", str(len(served.adapters)), "--max-lora-rank", str(rank)]
        if modules := lora_modules(served.adapters.values()):
            arguments += ["--lora-target-modules", *modules]
        arguments += ["--lora-modules", *(f"{name}={path}" for name, path in served.adapters.items())]
    return arguments


def _on_cpu(config: ModelConfig) -> bool:
    """Whether vLLM will compute on the processor, as far as can be known from outside."""
    return guess_device(config.device) == "cpu" and gpu_count() == 0


def _dtype(config: ModelConfig) -> str | None:
    """None leaves it to vLLM, which takes the weights' own; a processor without bfloat16 would have to emulate that."""
    if config.dtype != "auto":
        return config.dtype
    if not _on_cpu(config):
        return None
    import torch

    return str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


def _free_port(wanted: int | None) -> int:
    """The wanted port, or one that is free now. Raises RunError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left a moment ago is free
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            raise RunError(
                f"port {wanted} on {HOST} cannot be had ({error.strerror}); name another with --port, or none"
            ) from None
        found: int = probe.getsockname()[1]
        return found


def _wait_for(
    process: subprocess.Popen[bytes], port: int, names: set[str], log: Path, patience: float, console: Console
) -> None:
    """Until the server is well and serves these models; says now and then that it is not yet. Raises RunError."""
    started = said = time.monotonic()
    while True:
        code = process.poll()
        if code is not None:
            raise RunError(f"vllm serve has ended{_why(code)} before it answered; the end of its log:\n{_tail(log)}")
        if _serves(port, names):
            return
        now = time.monotonic()
        if now - started > patience:
            raise RunError(f"vllm serve has not answered within {patience:.0f} s; the end of its log:\n{_tail(log)}")
        if now - said >= SILENT_SECONDS:
            said = now
            console.say(f"vllm has been loading for {duration(now - started)}")
        time.sleep(POLL)


def _serves(port: int, names: set[str]) -> bool:
    """Whether a server is well there and says that it serves these models.

    Raises RunError where it plainly never will: vLLM answers only when all of its models are there, so one that is well
    without them is another program, which took the port in the meantime, or was made to want a key.
    """
    if _get(port, "/health")[0] != 200:
        return False
    status, body = _get(port, "/v1/models")
    if status in (401, 403):
        raise RunError(
            f"the server at {HOST}:{port} wants a key ({status} for /v1/models): on 127.0.0.1 it is to ask for none; "
            "take the key out of what stands after --, or name a port that no other program uses with --port"
        )
    if status is None or status >= 500:
        return False
    try:
        there = {str(model["id"]) for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        there = set()
    if missing := names - there:
        raise RunError(
            f"another server answers at {HOST}:{port}: it serves {', '.join(sorted(there)) or 'no models'}, not "
            f"{', '.join(sorted(missing))}; name a port that no other program uses with --port, or none"
        )
    return True


def _get(port: int, path: str) -> tuple[int | None, bytes]:
    """Status and body; no status where nothing answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it started, and the watchman, who heeds no SIGTERM."""
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING)
    finally:  # also where another Ctrl-C cuts the waiting short
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _why(code: int) -> str:
    return f" by signal {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"


def _tail(log: Path) -> str:
    """The end of a log, after the first error in it, of which the end is often only the wreckage."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((number for number, line in enumerate(lines) if ERROR_LINE.search(line)), len(lines))
    shown = [*lines[first : first + 1], "…"] * (first < len(lines) - TAIL) + lines[-TAIL:]
    return "\n".join(f"  {line}" for line in shown) or "  (it said nothing)"
