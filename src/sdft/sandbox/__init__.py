"""Run programs that a model wrote against tests, where they can do no harm.

    run_tests(["def add(a, b): return a + b"], "assert add(1, 2) == 3", {"add": "add"}, Limits(), sandbox())

Two bubblewrap sandboxes, one for the program and one for the tests; inside.py says why. Each is without network,
has namespaces of its own for processes and IPC, none of the user's environment, and of the file system /usr, the
libraries and the interpreter alone, read-only: nothing can be written. Each is one process, which can start no other
and no thread, with limits on CPU seconds, memory, open files and file size. Once the tests have ended, or their time
has, both are killed, and with them whatever is in there. Of Python, only the standard library is there; what a
program prints goes nowhere.

What it does not stop: a program that knows the tests (MBPP's prompt shows them), or tells them from its arguments,
and answers accordingly; bugs of the kernel, whose system calls are not filtered; and, for as long as a program may
run, memory outside its address space such as SysV segments. Without a sandbox (`UNCONFINED`) the limits hold, except
that root can start processes and lift them, but a program can read and write what the user can, reach the network,
and tamper with the tests' process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

from sdft.errors import BenchmarkError
from sdft.sandbox.inside import STARTED

START_SECONDS = 90.0
"""For both sides to start, on a machine that is busy with other things."""
MOST_SAID = 1 << 16
"""Bytes that the tests' side may say: a verdict, or why it could not start."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """From when it is loaded until its tests have ended; of CPU time, a little more."""
    memory: int = 1 << 30
    """Bytes of address space."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How to start a command in a sandbox."""

    prefix: tuple[str, ...]
    """What stands before the command."""
    user: int | None
    """Who to become in there; None: nobody else."""


UNCONFINED = Sandbox((), None)
"""No sandbox at all."""
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program."""

    reason: str
    """`ok`, `wrong_answer`, `raised`, `timeout`, `exited` (the program) or `crashed` (its tests)."""
    detail: str = ""


def run_tests(
    sources: Sequence[str], tests: str, names: Mapping[str, str], limits: Limits, sandbox: Sandbox, helpers: str = ""
) -> Outcome:
    """Load `sources`, one after the other, as one program, and run `tests` on it.

    `names` maps names in the tests to the program's; `helpers` is source of their own that tests use. Raises
    BenchmarkError where the sandbox does not start.
    """
    task: dict[str, Any] = {"sources": list(sources), "helpers": helpers, "tests": tests, "names": dict(names)}
    task["seconds"] = limits.seconds
    ours, theirs = socket.socketpair()
    started: list[subprocess.Popen[bytes]] = []
    with ours, theirs, tempfile.TemporaryFile("w+") as told:
        json.dump(task, told)
        told.seek(0)
        try:
            started.append(_start(sandbox, "program", theirs, limits, subprocess.DEVNULL, subprocess.DEVNULL))
            theirs.close()  # else nobody would notice that the program has ended
            started.append(_start(sandbox, "tests", ours, limits, told, subprocess.PIPE))
            ours.close()
            said = _read(started[-1].stdout, limits.seconds + START_SECONDS)
        finally:
            for process in started:
                _kill(process)
    if said is None:
        return Outcome("timeout", f"{limits.seconds:g} seconds")
    first, _, verdict = said.partition("\n")
    if first != STARTED:
        raise BenchmarkError(f"the sandbox does not start: {first or f'exit code {started[-1].returncode}'}")
    if not verdict.endswith("}"):
        return Outcome("crashed", "the tests ended without a verdict")
    found = json.loads(verdict)
    if found["reason"] == "not_started":
        raise BenchmarkError(f"the program's sandbox does not start (exit code {started[0].returncode})")
    # What a program raised may hold half a character, which no file takes.
    return Outcome(found["reason"], found["detail"].encode("utf-8", "replace").decode("utf-8"))


def _read(pipe: IO[bytes] | None, seconds: float) -> str | None:
    """What a process says until it ends, or has said too much; None where it takes too long."""
    assert pipe is not None
    said, deadline = b"", time.monotonic() + seconds
    with pipe:
        while len(said) < MOST_SAID:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            part = os.read(pipe.fileno(), MOST_SAID)
            if not part:
                break
            said += part
    return said.decode("utf-8", "replace")


def _start(
    sandbox: Sandbox, role: str, line: socket.socket, limits: Limits, stdin: IO[str] | int, stdout: IO[str] | int
) -> subprocess.Popen[bytes]:
    source = resources.files("sdft.sandbox").joinpath("inside.py").read_text(encoding="utf-8")
    numbers = [line.fileno(), math.ceil(limits.seconds) + 5, limits.memory]
    numbers += [] if sandbox.user is None else [sandbox.user]
    return subprocess.Popen(
        [*sandbox.prefix, str(_interpreter()), "-sSPB", "-c", source, role, *map(str, numbers)],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env={"PYTHONHASHSEED": "0"},  # sets come in the same order each time
        cwd="/",
        pass_fds=(line.fileno(),),
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _interpreter() -> Path:
    """The interpreter itself, not a virtual environment's: what is installed there is not for programs."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


# Finding one that works


def sandbox() -> Sandbox:
    """This machine's sandbox. Raises BenchmarkError, saying what to install, where none works."""
    found, why = _search()
    if found is None:
        raise BenchmarkError(why)
    return found


def problem() -> str | None:
    """Why no sandbox works here and what to do about it; None where one does."""
    return _search()[1] or None


PROBE = """
import os, socket

def freedoms():
    found = [path for path in ("/etc/passwd", "/proc/1", "/dev/shm", "/run") if os.path.exists(path)]
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        found.append("the network")
    try:
        if os.fork() == 0:
            os._exit(0)
        found.append("further processes")
    except OSError:
        pass
    try:
        open("/written", "w").close()
        found.append("writing")
    except OSError:
        pass
    return ", ".join(found)
"""


@functools.cache
def _search() -> tuple[Sandbox | None, str]:
    """The first kind of sandbox that confines a real program, or why none does."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        return None, (
            "the sandbox for programs needs bubblewrap (Linux), which is not installed; install it "
            "(apt-get install bubblewrap, dnf install bubblewrap), or set allow_unsandboxed: true to run what the "
            "model writes as any other program of yours"
        )
    why = ""
    for candidate in _kinds(bubblewrap):
        try:
            outcome = run_tests([PROBE], "free = freedoms()\nassert free == '', free", {"freedoms": "freedoms"},
                                Limits(), candidate)  # fmt: skip
        except BenchmarkError as error:
            why = str(error)
            continue
        if outcome.reason == "ok":
            return candidate, ""
        why = f"it does not confine a program: {outcome.reason} ({outcome.detail})"
    return None, (
        f"bubblewrap is installed but does not work here ({why}); let this user create namespaces (sysctl "
        "kernel.unprivileged_userns_clone=1; Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0; Docker: "
        "--security-opt seccomp=unconfined), or set allow_unsandboxed: true to run what the model writes as any other "
        "program of yours"
    )


def _kinds(bubblewrap: str) -> Iterator[Sandbox]:
    """Sandboxes to try.

    Root becomes nobody inside, for the number of root's processes cannot be limited; a namespace of users would
    stand in the way. Where that is refused, and for other users, such a namespace is what allows the rest.
    """
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    become = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    if os.getuid() == 0:
        yield Sandbox((bubblewrap, "--die-with-parent", *apart, *become, *_files(), "--"), NOBODY)
    alone = ["--unshare-user", "--cap-drop", "ALL"]
    yield Sandbox((bubblewrap, "--die-with-parent", *apart, *alone, *_files(), "--"), None)


def _files() -> Iterator[str]:
    """What of the file system is there, read-only: what an interpreter needs."""
    yield from ("--ro-bind", "/usr", "/usr")
    for library in (Path("/lib"), Path("/lib64"), Path("/lib32")):
        if library.is_symlink():
            yield from ("--symlink", str(library.readlink()), str(library))
        elif library.is_dir():
            yield from ("--ro-bind", str(library), str(library))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
    prefixes = (Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve())
    for place in dict.fromkeys([*prefixes, _interpreter().parent]):
        if not any(place.is_relative_to(other) for other in (Path("/usr"), *prefixes) if other != place):
            for parent in reversed(place.parents[:-1]):  # those that bwrap makes by itself are root's alone
                yield from ("--dir", str(parent))
            yield from ("--ro-bind", str(place), str(place))
    yield from ("--remount-ro", "/", "--chdir", "/")
