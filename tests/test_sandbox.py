"""The sandbox against programs that mean harm, or want a pass for nothing."""

from __future__ import annotations

import os
import resource
import shutil
import socket
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
from sdft.sandbox import UNCONFINED, Limits, Outcome, run_tests, sandbox

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
    assert time.monotonic() - started < 30


def test_a_deadline_also_holds_for_a_program_that_never_loads() -> None:
    assert ran("while True: pass", seconds=1) == Outcome("timeout", "1 seconds")


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
            found.append(open(path, "rb").read(100) if not os.path.isdir(path) else os.listdir(path))
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


def test_nothing_can_be_written(tmp_path: Path) -> None:
    folders = ["/", "/tmp", "/usr", "/usr/lib", "/dev", "/dev/shm", "/root", "/var/tmp", sys.base_prefix, str(tmp_path)]
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
"""
    assert ran(program, f"written = f({folders})\nassert written == [], written") == Outcome("ok")


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


@pytest.mark.parametrize("victim", ["os.getppid()", "1", "-1", "0", str(os.getpid()), str(os.getppid())])
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
    outcome = ran(fake, tests, seconds=2)
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
