"""The sandbox against programs that mean harm, or want a pass for nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdft.sandbox as module
from helpers_code import need_sandbox
from sdft.errors import BenchmarkError
from sdft.sandbox import TMP_BYTES, UNCONFINED, Limits, Outcome, Sandbox, run_tests, sandbox
from sdft.sandbox.seccomp import ARCHITECTURES, CALLS, CLONE, seccomp_filter

ADD = "def f(a, b):\n    return a + b\n"
TESTS = "assert f(1, 2) == 3\nassert f(a=2, b=40) == 42\n"
LIMITS = Limits(seconds=5)


@pytest.fixture(autouse=True)
def confined() -> None:
    need_sandbox()


@pytest.fixture
def search_anew() -> Iterator[None]:
    """Look for a sandbox again, here and after the test."""
    module._search.cache_clear()
    yield
    module._search.cache_clear()


def ran(program: str, tests: str = TESTS, seconds: float = 5, memory: int = 1 << 30) -> Outcome:
    return run_tests([program], tests, {"f": "f"}, Limits(seconds, memory), sandbox())


def running(mark: str) -> list[str]:
    """Processes of this machine with `mark` among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def gone(mark: str) -> bool:
    end = time.monotonic() + 5
    while running(mark) and time.monotonic() < end:
        time.sleep(0.02)
    return not running(mark)


# Verdicts


def test_right_and_wrong_programs() -> None:
    assert ran(ADD) == Outcome("ok")
    wrong = ran("def f(a, b):\n    return a - b\n")
    assert (wrong.reason, wrong.detail) == ("wrong_answer", "assert f(1, 2) == 3")
    assert ran("def f(a, b): pass").reason == "wrong_answer"
    raised = ran("def f(a, b):\n    return a / 0\n")
    assert (raised.reason, raised.detail) == ("raised", "ZeroDivisionError: division by zero")
    odd = ran("def f(a, b): raise ValueError('half \\ud800')")
    assert odd.reason == "raised" and odd.detail.encode("utf-8").startswith(b"ValueError: half ")
    assert ran("def f(a, b:").detail.startswith("SyntaxError")
    assert ran("def g(a, b): return a + b").detail == "NameError: name 'f' is not defined"


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "10**400", "-1", "0.1", "float('inf')", "'ä\\ud800'", "b'\\x00\\xff'", "[1, (2, {3: {4}})]",
        "{(1, 2): frozenset([3]), None: 1j}", "()", "set()", "int", "[float]",
    ],
)  # fmt: skip
def test_plain_data_goes_there_and_back(value: str) -> None:
    tests = f"value = {value}\nback = f(value)\nassert back == value and type(back) is type(value), back"
    assert ran("def f(value):\n    return value\n", tests) == Outcome("ok")


def test_a_subclass_counts_as_its_base_and_objects_stay_with_the_program() -> None:
    program = """
from collections import Counter, namedtuple
class Node:
    def __init__(self, value): self.value, self.left = value, None
def f(kind):
    return {"tuple": namedtuple("P", "x y")(1, 2), "dict": Counter("aab"), "lazy": (n * n for n in range(3))}[kind]
def depth(node): return 0 if node is None else 1 + depth(node.left)
"""
    tests = """
assert f("tuple") == (1, 2) and f("dict") == {"a": 2, "b": 1} and list(f("lazy")) == [0, 1, 4]
root = Node(1)
root.left = Node(2)
assert depth(root) == 2 and root.left.value == 2
"""
    names = {name: name for name in ("f", "Node", "depth")}
    assert run_tests([program], tests, names, LIMITS, sandbox()) == Outcome("ok")


def test_the_same_program_gets_the_same_verdict_each_time() -> None:
    program = "import random\ndef f():\n    return random.random(), list({'a', 'b', 'c', 'd'})\n"
    said = {ran(program, "assert f() == 0, f()").detail for _ in range(3)}
    assert len(said) == 1


def test_several_sources_are_one_program_and_helpers_belong_to_the_tests() -> None:
    sources = ["import math", "from __future__ import annotations\ndef f(x: Missing): return math.sqrt(x)"]
    helpers = "def f(x): return 'helper'\ndef twice(x): return 2 * x"
    tests = "assert twice(f(4)) == 4"
    assert run_tests(sources, tests, {"f": "f"}, LIMITS, sandbox(), helpers) == Outcome("ok")


# Harm


def test_a_fork_bomb_starts_nothing() -> None:
    program = """
import os
started = 0
try:
    while True:
        if os.fork() == 0:
            while True: pass
        started += 1
except OSError:
    pass
def f(): return started
"""
    assert ran(program, "assert f() == 0") == Outcome("ok")
    threads = "import threading\ndef f(a, b):\n    threading.Thread(target=print).start()\n    return a + b\n"
    assert ran(threads).reason == "raised"
    assert ran("import subprocess\ndef f(a, b): return subprocess.call(['/usr/bin/true'])").reason == "raised"


@pytest.mark.parametrize("bomb", ["[0] * 10**10", "bytearray(3 << 30)", "list(iter(int, 1))", "'x' * (1 << 40)"])
def test_a_memory_bomb_fails_at_its_limit(bomb: str) -> None:
    outcome = ran(f"def f(a, b): return {bomb}", memory=256 << 20)
    assert outcome.reason in ("raised", "exited")


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(1000)", "input()", "10 ** 10 ** 8"])
def test_what_does_not_end_is_ended(loop: str) -> None:
    started = time.monotonic()
    deaf = (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    )
    outcome = ran(f"{deaf}def f(a, b):\n    {loop}", seconds=1)
    assert outcome.reason == ("raised" if loop == "input()" else "timeout")
    assert time.monotonic() - started < 60


def test_limits_on_time_also_hold_for_a_program_that_never_loads() -> None:
    assert ran("while True: pass", seconds=1) == Outcome("timeout", "1 seconds of CPU time")
    assert ran("import time; time.sleep(1000)", seconds=0.5) == Outcome("timeout", "3 seconds")


def test_waiting_for_a_busy_machine_takes_none_of_a_programs_time() -> None:
    assert ran(f"import time\ntime.sleep(2.5)\n{ADD}", seconds=1) == Outcome("ok")


def test_nothing_of_the_user_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key", encoding="utf-8")
    at_home = Path.home() / f".sdft-test-{uuid.uuid4().hex}"
    monkeypatch.setenv("API_KEY", "key")
    program = """
import os
def f(paths):
    found = [item for item in os.environ.items() if item[0] not in ("PYTHONHASHSEED", "PWD", "LC_CTYPE")]
    for path in paths:
        try:
            found += os.listdir(path) if os.path.isdir(path) else [open(path, "rb").read(100)]
        except OSError:
            pass
    return found
"""
    paths = [secret, at_home, __file__, *(f"/{name}" for name in ("etc/shadow", "etc/passwd", "proc/1/environ",
             "proc/self/maps", "proc", "tmp", "var", "run", "sys"))]  # fmt: skip
    at_home.write_text("key", encoding="utf-8")
    try:
        assert ran(program, f"found = f({[str(path) for path in paths]})\nassert found == [], found") == Outcome("ok")
    finally:
        at_home.unlink()


def test_nothing_can_be_written_but_a_small_tmp_of_its_own(tmp_path: Path) -> None:
    folders = ["/", "/usr", "/usr/lib", "/dev", "/dev/shm", "/root", "/var/tmp", sys.base_prefix]
    program = """
import os
def f(folders):
    written = []
    for folder in folders:
        try:
            os.makedirs(folder, exist_ok=True)
            open(os.path.join(folder, "sdft-was-here"), "w").write("x")
            written.append(folder)
        except OSError:
            pass
    return written
def fill():
    written = 0
    try:
        for name in range(64):
            with open(f"/tmp/{name}", "wb", buffering=0) as file:
                while written < 64 << 20 and file.tell() < 1 << 20:
                    written += file.write(bytes(1 << 16))
    except OSError:
        pass
    return written
"""
    tests = f"written = f({folders})\nassert written == [], written\nsize = fill()\n"
    tests += f"assert {TMP_BYTES} // 2 < size <= {TMP_BYTES}, size"
    assert run_tests([program], tests, {"f": "f", "fill": "fill"}, LIMITS, sandbox()) == Outcome("ok")
    mine = f"import os\nos.makedirs('{tmp_path}', exist_ok=True)\nopen('{tmp_path}/x', 'w').close()\n{ADD}"
    assert ran(mine).reason in ("ok", "raised") and list(tmp_path.iterdir()) == []
    assert ran("import os\ndef f(): return os.listdir('/tmp')", "assert f() == []") == Outcome("ok")


def test_honest_programs_have_temporary_files_and_devices() -> None:
    program = """
import os, tempfile
def f():
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "a"), "w+") as file:
        file.write("kept")
        file.seek(0)
        said = file.read()
    with tempfile.TemporaryFile() as file, open("/dev/null", "w") as nowhere, open("/dev/urandom", "rb") as chance:
        file.write(chance.read(10))
        nowhere.write("x")
        return said, file.tell(), open("/dev/null").read(), open("/dev/zero", "rb").read(2)
"""
    assert ran(program, "assert f() == ('kept', 10, '', bytes(2))") == Outcome("ok")


def test_files_without_content_are_counted_too() -> None:
    program = """
import os
def f(most):
    for number in range(most):
        os.mknod(f"/tmp/{number}")
"""
    for kind in kinds():
        ended = run_tests([program], "f(1_000_000)", {"f": "f"}, Limits(4), kind)
        assert ended.reason == "exited" and "10000 files" in ended.detail
        assert run_tests([program], "f(1000)", {"f": "f"}, LIMITS, kind) == Outcome("ok")


LIBC = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
"""
HOARDS = {
    "shared memory": """
    part = libc.shmget(0, 32 << 20, 0o1600)
    there = libc.shmat(part, None, 0)
    if part == -1 or there == ctypes.c_void_p(-1).value:
        raise MemoryError
    ctypes.memset(there, 1, 32 << 20)
    libc.shmdt(ctypes.c_void_p(there))
""",
    "files without a name": """
    files.append(os.memfd_create("x"))
    os.write(files[-1], bytes(1 << 20))
""",
}


@pytest.mark.parametrize("hoard", HOARDS.values(), ids=HOARDS)
def test_no_memory_is_held_outside_the_address_space(hoard: str) -> None:
    program = f"""{LIBC}
files = []
def more():{hoard}
def f():
    for held in range(8):
        try:
            more()
        except (OSError, MemoryError):
            return held
    return 8
"""
    outcome = ran(program, "assert f() == 0, f()", seconds=10, memory=160 << 20)
    assert outcome == Outcome("ok")


def kinds() -> list[Sandbox]:
    """All that start here, whether they are the first choice or not."""
    found = []
    for kind in module._kinds(shutil.which("bwrap") or "", seccomp_filter()):
        with contextlib.suppress(BenchmarkError):
            run_tests([ADD], TESTS, {"f": "f"}, LIMITS, kind)
            found.append(kind)
    return found


def test_no_namespace_is_made_and_nothing_is_mounted() -> None:
    program = f"""{LIBC}
USER, FILES = 0x10000000, 0x00020000
def forked(flags):
    asked = ctypes.byref((ctypes.c_uint64 * 8)(flags, 0, 0, 0, 17))
    for values in ((435, asked, 64), (CLONE, flags | 17, 0, 0, 0, 0)):  # clone3, then clone, as libc does it
        child = libc.syscall(*values)
        if child == 0:
            os._exit(0)
        if child > 0:
            os.waitpid(child, 0)
            return 0
    return -1
def f():
    done = []
    for name, how in {{
        "both at once": lambda: libc.unshare(USER | FILES),
        "users": lambda: libc.unshare(USER),
        "then files": lambda: libc.unshare(FILES),
        "a child with its own users": lambda: forked(USER),
        "a mount": lambda: libc.mount(b"tmpfs", b"/usr", b"tmpfs", 0, None),
        "a bind": lambda: libc.mount(b"/tmp", b"/usr/lib", None, 4096, None),
        "an unmount": lambda: libc.umount2(b"/tmp", 2),
        "a new file system": lambda: min(libc.syscall(430, b"tmpfs", 0), 0),
        "a copied tree": lambda: min(libc.syscall(428, -100, b"/usr", 1), 0),
        "another's namespace": lambda: libc.setns(0, 0),
    }}.items():
        if how() == 0 or ctypes.get_errno() != errno.EPERM:
            done.append((name, ctypes.get_errno()))
    return done, len(os.listdir("/usr")) > 0
"""
    program = program.replace("CLONE", str(CLONE[ARCHITECTURES[platform.machine()][1]]))
    for kind in kinds():
        assert run_tests([program], "done = f()\nassert done == ([], True), done", {"f": "f"}, LIMITS, kind) == Outcome(
            "ok"
        )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have no such second set of system calls")
def test_system_calls_by_their_other_numbers_are_refused() -> None:
    x32 = f"{LIBC}def f():\n    return libc.syscall(0x40000000 + 29, 0, 4096, 0o1600), ctypes.get_errno()\n"
    assert ran(x32, "assert f() == (-1, 1), f()") == Outcome("ok")
    i386 = f"""{LIBC}
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
def f():
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    outcome = ran(i386, "assert f() == -1, f()")
    assert outcome.reason in ("ok", "exited")  # a kernel without them kills what asks


def answer(machine: str, call: int, first: int = 0, architecture: int | None = None) -> int:
    """What the filter says to a system call: 0, or the number of an error."""
    data = struct.pack("=IIQQ", call, architecture or ARCHITECTURES[machine][0], 0, first)
    steps = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
    at = held = 0
    while True:
        code, yes, no, value = steps[at]
        if code == 0x06:
            assert value >> 16 in (0x7FFF, 5)
            return int(value & 0xFFFF) if value >> 16 == 5 else 0
        at += 1
        if code == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: held & value != 0}[code]
            at += yes if holds else no


@pytest.mark.parametrize(("machine", "other", "usual"), [("x86_64", 0x40000003, 0), ("aarch64", 0x40000028, 63)])
def test_the_filter_knows_each_machines_system_calls(machine: str, other: int, usual: int) -> None:
    column = ARCHITECTURES[machine][1]
    assert {name for name, numbers in CALLS.items() if answer(machine, numbers[column]) != errno.EPERM} == set()
    assert answer(machine, usual) == 0, "read"
    assert answer(machine, usual, architecture=other) == answer(machine, 0x40000000 + usual) == errno.EPERM
    assert answer(machine, 435) == errno.ENOSYS
    assert answer(machine, CLONE[column], 17) == 0, "fork"
    assert answer(machine, CLONE[column], 0x003D0F00) == 0, "a thread"
    assert answer(machine, CLONE[column], 0x10000000 | 17) == answer(machine, CLONE[column], 0x20000) == errno.EPERM


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = """
import socket
def f(port):
    for place in (("127.0.0.1", port), ("1.1.1.1", 53), ("8.8.8.8", 53)):
        try:
            socket.create_connection(place, timeout=1)
            return place
        except OSError:
            pass
"""
        assert ran(program, f"assert f({port}) is None") == Outcome("ok")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "victim",
    ["os.getppid()", "1", "-1", "0", str(os.getpid()), str(os.getppid())],
    ids=["parent", "init", "all", "group", "tests", "their parent"],
)
def test_nobody_else_is_killed(victim: str) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        outcome = ran(f"import os, signal\ntry: os.kill({victim}, signal.SIGKILL)\nexcept OSError: pass\n{ADD}")
        assert outcome.reason in ("ok", "exited")  # it may have killed itself
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_nothing_outlives_its_test() -> None:
    mark = f"sdft-{uuid.uuid4().hex}"
    program = f"""
import os
for leave in (os.fork, os.setsid):
    try:
        leave()
    except OSError:
        pass
os.execv("/usr/bin/sleep", ["{mark}", "60"])
"""
    assert ran(program, seconds=1).reason == "timeout"
    assert gone(mark)


def test_a_gigabyte_of_output_costs_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    program = f"import os\nfor n in range(1024):\n    os.write(1 + n % 2, bytes(1 << 20))\n{ADD}"
    assert ran(program) == Outcome("ok")
    answer = ran("def f(a, b): return 'x' * (100 << 20)")
    assert answer.reason == "wrong_answer" and "bytes" in answer.detail
    assert ran("def f(a, b): raise ValueError('x' * (100 << 20))").reason == "raised"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


# A pass for nothing

EVERYWHERE = """
import os
def say(text):
    for number in range(64):
        try: os.write(number, text)
        except OSError: pass
def message(text): return len(text).to_bytes(8, "big") + text
"""
EQUAL = """
class Equal{base}:
    def __eq__(self, other): return True
    __ne__ = __lt__ = None
    def __hash__(self): return 3
"""
FAKES = {
    "os._exit": "import os\ndef f(a, b): os._exit(0)",
    "os._exit at once": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit within": "def f(a, b): raise SystemExit(0)",
    "killed": "import os\ndef f(a, b): os.kill(os.getpid(), 9)",
    "equal to all": EQUAL.format(base="") + "def f(a, b): return Equal()",
    "equal int": EQUAL.format(base="(int)") + "def f(a, b): return Equal(7)",
    "equal list": EQUAL.format(base="(list)") + "def f(a, b): return Equal([Equal()])",
    "patched builtins": "import builtins as b\nb.AssertionError = Exception\nb.isinstance = lambda *_: True\n"
    "b.len = b.abs = lambda *_: 0\ndef f(a, b): return 0",
    "patched json": "import json\njson.dumps = lambda *_: '[\"value\", null]'\ndef f(a, b): return 0",
    "markers": EVERYWHERE + 'say(b\'started\\n{"reason": "ok", "detail": ""}\')\ndef f(a, b): return 0',
    "forged answers": EVERYWHERE + 'for text in (b\'["value", true]\', b\'"ready"\', b\'["value", {"object": 0}]\'):\n'
    "    say(message(text))\ndef f(a, b): return 0",
    "malformed answers": EVERYWHERE + "say(message(b'{\"a\": 1}]]'))\ndef f(a, b): return 0",
    "half an answer": EVERYWHERE + "say(bytes(2))\nos._exit(0)",
    "an endless answer": EVERYWHERE + "say((1 << 24).to_bytes(8, 'big'))\ndef f(a, b): return 3 if a == 1 else 4",
    "deep answers": "def f(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "frames": "import inspect\ndef f(a, b):\n    for frame in inspect.stack():\n"
    "        frame.frame.f_globals.update(check=lambda *_: None, judge=lambda *_: ('ok', ''))\n    return 0",
    "its own tests": "def check(candidate): pass\nTESTS = ''\ndef f(a, b): return 0",
    "nan": "def f(a, b): return float('nan')",
}


@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_no_trick_makes_a_pass(fake: str) -> None:
    tests = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert abs(f(2, 2) - 4) < 1e-6\ncheck(f)"
    outcome = ran(fake, tests, seconds=1)
    assert outcome.reason in ("wrong_answer", "raised", "exited", "timeout")


def test_the_program_does_not_meet_the_tests() -> None:
    program = """
import gc, sys
def f():
    texts = [item for item in gc.get_objects() if isinstance(item, (str, dict, list))]
    return "XYZ" + "ZY" in repr(texts) + repr(sys.argv) + repr(sys.orig_argv)
"""
    tests = 'secret = "XYZZY"\nassert f() is False'
    assert ran(program, tests) == Outcome("ok")


# Where there is none


def test_where_bubblewrap_is_missing_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, search_anew: None
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt-get install bubblewrap" in str(module.problem())
    with pytest.raises(BenchmarkError, match="allow_unsandboxed"):
        sandbox()


def test_where_namespaces_are_refused_it_says_so(
    monkeypatch: pytest.MonkeyPatch, search_anew: None, tmp_path: Path
) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(refusing))
    assert "Creating new namespace failed" in str(module.problem())


def test_a_sandbox_that_confines_nothing_does_not_count(
    monkeypatch: pytest.MonkeyPatch, search_anew: None, tmp_path: Path
) -> None:
    leaking = tmp_path / "bwrap"
    leaking.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    leaking.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(leaking))
    assert module.problem() is not None


def test_where_the_system_calls_are_not_known_it_says_so(monkeypatch: pytest.MonkeyPatch, search_anew: None) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "riscv64" in str(module.problem()) and "allow_unsandboxed" in str(module.problem())
    with pytest.raises(BenchmarkError, match="x86_64 and aarch64 alone"):
        sandbox()


def test_a_sandbox_that_does_not_start_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 1.0)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    half = tmp_path / "half"
    half.write_text('#!/bin/sh\ncase "$*" in *" program "[0-9]*) exit 1;; esac\nshift 3\nexec "$@"\n')
    for path, why in ((slow, "said nothing in 1 seconds"), (half, "the program's side does not answer")):
        path.chmod(0o755)
        with pytest.raises(BenchmarkError, match=why):
            run_tests([ADD], TESTS, {"f": "f"}, Limits(1), Sandbox((str(path),), None, b""))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_than_root_has_a_sandbox_too() -> None:
    python = shutil.which("python3", path="/usr/bin")
    code = "import sys; sys.path[:0] = sys.argv[1:]; from sdft.sandbox import problem; print(problem())"
    folder = str(Path(module.__file__).parents[2])
    said = subprocess.run(
        [python or "", "-c", code, folder],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
    )
    if said.returncode or "Creating new namespace" in said.stdout:
        pytest.skip(f"nobody can run this here: {(said.stderr or said.stdout)[-200:]}")
    assert said.stdout == "None\n"


def test_without_a_sandbox_limits_and_deadlines_hold() -> None:
    def outcome(program: str) -> str:
        return run_tests([program], TESTS, {"f": "f"}, Limits(1, 256 << 20), UNCONFINED).reason

    mark = f"sdft-{uuid.uuid4().hex}"
    assert outcome(ADD) == "ok"
    assert outcome("while True: pass") == "timeout"
    assert outcome("def f(a, b): return bytearray(1 << 30)") == "raised"
    assert outcome(f"import os\nos.execv('/usr/bin/sleep', ['{mark}', '60'])") == "timeout"
    assert gone(mark)
