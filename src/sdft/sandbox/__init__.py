"""Run programs that a model wrote against tests, where they can do no harm.

    run_tests(["def add(a, b): return a + b"], "assert add(1, 2) == 3", {"add": "add"}, Limits(), sandbox())

Two bubblewrap sandboxes, one for the program and one for the tests; inside.py says why. Each is without network,
has namespaces of its own for processes and IPC, none of the user's environment, and of the file system /usr, the
libraries and the interpreter alone, read-only, a few devices such as /dev/null, and a small /tmp of its own. Each is
one process, which can start no other and no thread, with limits on CPU seconds, memory, open files and file size.
System calls that would undo this, or reach past the limits, are refused (seccomp.py). Once the tests have ended, or
their time has, both are killed, and with them whatever is in there. Of Python, only the standard library is there;
what a program prints goes nowhere.

What it does not stop: a program that knows the tests (MBPP's prompt shows them), or tells them from its arguments,
and answers accordingly; bugs of the kernel in system calls that are not refused; and, for as long as a program may
run, memory that the kernel counts for nobody, such as that of file locks. Without a sandbox (`UNCONFINED`) the limits
hold, except that root can start processes and lift them, but a program can read and write what the user can, reach
the network, and tamper with the tests' process.
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
from typing import IO, Any, Literal

from sdft.errors import BenchmarkError
from sdft.sandbox.inside import STARTED
from sdft.sandbox.seccomp import seccomp_filter

START_SECONDS = 90.0
"""For both sides to start, on a machine that is busy with other things; and for the tests' to say its verdict."""
PATIENCE = 6
"""How many times its seconds of CPU time a program may take on the clock: it may sleep, or share its core."""
TMP_BYTES = 16 << 20
TMP_FILES = 10_000
"""Empty files take memory, too, which TMP_BYTES does not count: a program with more is ended."""
TICK = 0.1
"""Seconds between two looks at how many there are."""
DEVICES = ("null", "zero", "random", "urandom")
MOST_SAID = 1 << 16
"""Bytes that the tests' side may say: a verdict, or why it could not start."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Of CPU time, from when it is loaded until its tests have ended; a fraction may be rounded up."""
    memory: int = 1 << 30
    """Bytes of address space. Files in /tmp come on top."""

    @property
    def patience(self) -> float:
        """Seconds on the clock."""
        return self.seconds * PATIENCE


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How to start a command in a sandbox."""

    prefix: tuple[str, ...]
    """bwrap and its options; nothing: no sandbox."""
    user: int | None
    """Who to become in there; None: nobody else."""
    calls: bytes
    """The filter of system calls."""


UNCONFINED = Sandbox((), None, b"")
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
    task |= {"seconds": limits.seconds, "patience": limits.patience}
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
            said, end = _read(started[1], limits.patience + START_SECONDS, started[0] if sandbox.prefix else None)
        finally:
            for process in started:
                _kill(process)
    first, _, verdict = said.partition("\n")
    if first != STARTED:
        late = f"it said nothing in {START_SECONDS:g} seconds"
        silent = late if end == "late" else f"exit code {started[-1].returncode}"
        raise BenchmarkError(f"the sandbox does not start: {first or silent}")
    if end == "late":
        return Outcome("timeout", f"{limits.patience:g} seconds")
    if end == "crowded":
        return Outcome("exited", f"the program was ended for having more than {TMP_FILES} files")
    if not verdict.endswith("}"):
        return Outcome("crashed", "the tests ended without a verdict")
    found = json.loads(verdict)
    # What a program raised may hold half a character, which no file takes.
    return Outcome(found["reason"], found["detail"].encode("utf-8", "replace").decode("utf-8"))


def _read(
    tests: subprocess.Popen[bytes], seconds: float, confined: subprocess.Popen[bytes] | None
) -> tuple[str, Literal["said", "late", "crowded"]]:
    """What the tests' side says, and why that is all: it has ended, or takes too long, or the program goes too far.

    It has START_SECONDS to say that both sides have started, and from then on `seconds`. `confined` is the program,
    where it is in a sandbox.
    """
    pipe = tests.stdout
    assert pipe is not None
    said, begun, deadline = b"", False, time.monotonic() + START_SECONDS
    end: Literal["said", "late", "crowded"] = "said"
    with pipe:
        while len(said) < MOST_SAID:
            if select.select([pipe], [], [], TICK)[0]:
                part = os.read(pipe.fileno(), MOST_SAID)
                if not part:
                    break
                said += part
            elif time.monotonic() > deadline:
                end = "late"
                break
            if begun and confined and _files_made(confined) > TMP_FILES:
                end = "crowded"
                break
            if not begun and said.startswith(f"{STARTED}\n".encode()):
                begun, deadline = True, time.monotonic() + seconds
    return said.decode("utf-8", "replace"), end


def _files_made(confined: subprocess.Popen[bytes]) -> int:
    """How many files a program has in its /tmp, seen from outside; 0 once it has ended."""
    try:
        (inside,) = Path(f"/proc/{confined.pid}/task/{confined.pid}/children").read_text(encoding="ascii").split()
        space = os.statvfs(f"/proc/{inside}/root/tmp")
    except (OSError, ValueError):
        return 0
    return space.f_files - space.f_ffree


def _start(
    sandbox: Sandbox, role: str, line: socket.socket, limits: Limits, stdin: IO[str] | int, stdout: IO[str] | int
) -> subprocess.Popen[bytes]:
    source = resources.files("sdft.sandbox").joinpath("inside.py").read_text(encoding="utf-8")
    numbers = [line.fileno(), math.ceil(limits.seconds), limits.memory]
    numbers += [] if sandbox.user is None else [sandbox.user]
    with tempfile.TemporaryFile() as calls:
        calls.write(sandbox.calls)
        calls.seek(0)
        confined = [*sandbox.prefix, "--seccomp", str(calls.fileno()), "--"] if sandbox.prefix else []
        return subprocess.Popen(
            [*confined, str(_interpreter()), "-sSPB", "-c", source, role, *map(str, numbers)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env={"PYTHONHASHSEED": "0"},  # sets come in the same order each time
            cwd="/",
            pass_fds=(line.fileno(), *([calls.fileno()] if confined else [])),  # bwrap closes the latter
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


AT_OWN_RISK = "set allow_unsandboxed: true to run what the model writes as any other program of yours"
PROBE = """
import errno, os, socket

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
    space = os.statvfs("/tmp")
    if space.f_blocks * space.f_frsize > MOST:
        found.append("a large /tmp")
    return ", ".join(found + calls())

def calls():
    # Where they are not refused these fail, too, or do no harm; but not with this error.
    try:
        import ctypes
    except ImportError:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    asked = {"unshare": [0x10020000], "mount": [b"none", b"/none", b"none", 0, None], "shmget": [0, 0, 0]}
    return [name for name, values in asked.items()
            if getattr(libc, name)(*values) != -1 or ctypes.get_errno() != errno.EPERM]
""".replace("MOST", str(TMP_BYTES))


@functools.cache
def _search() -> tuple[Sandbox | None, str]:
    """The first kind of sandbox that confines a real program, or why none does."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        return None, (
            "the sandbox for programs needs bubblewrap (Linux), which is not installed; install it "
            f"(apt-get install bubblewrap, dnf install bubblewrap), or {AT_OWN_RISK}"
        )
    try:
        calls = seccomp_filter()
    except BenchmarkError as error:
        return None, f"{error}; run this on another machine, or {AT_OWN_RISK}"
    why = ""
    for candidate in _kinds(bubblewrap, calls):
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
        f"bubblewrap is installed but does not work here ({why}); it must be 0.7 or newer, and this user must be able "
        "to create namespaces (sysctl kernel.unprivileged_userns_clone=1; Ubuntu: "
        "kernel.apparmor_restrict_unprivileged_userns=0; Docker: --security-opt seccomp=unconfined); or "
        f"{AT_OWN_RISK}"
    )


def _kinds(bubblewrap: str, calls: bytes) -> Iterator[Sandbox]:
    """Sandboxes to try.

    Root becomes nobody inside, for the number of root's processes cannot be limited; a namespace of users would
    stand in the way. Where that is refused, and for other users, such a namespace is what allows the rest; bubblewrap
    0.8 can see to it that no further one is made.
    """
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    become = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    if os.getuid() == 0:
        yield Sandbox((bubblewrap, "--die-with-parent", *apart, *become, *_files()), NOBODY, calls)
    alone = ["--unshare-user", "--cap-drop", "ALL"]
    for further in (["--disable-userns"], []):
        yield Sandbox((bubblewrap, "--die-with-parent", *apart, *alone, *further, *_files()), None, calls)


def _files() -> Iterator[str]:
    """What of the file system is there: what an interpreter needs, read-only; devices; and an empty /tmp."""
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
    yield from ("--dir", "/dev")
    for device in DEVICES:  # bwrap's own --dev has room for files without end
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
    yield from ("--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp")
    yield from ("--remount-ro", "/", "--chdir", "/")
