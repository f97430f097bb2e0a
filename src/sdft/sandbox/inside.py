"""What runs inside the sandboxes: a program that answers calls, and the tests that make them.

Two processes, each in a sandbox of its own, with a socket between them:

    tests:    assert add(1, 2) == 3    ──  call add (1, 2)  ──►    program: def add(a, b): …
              3 == 3                   ◄──  value 3  ────────

The program never meets the tests. What comes back is rebuilt from JSON as plain data, or as a `Remote` that equals
nothing but itself, so no `__eq__`, patched builtin or exit of the program's can turn into a pass. This file is handed
to a bare interpreter as text: it imports the standard library alone, and little of that.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import resource
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

MOST_BYTES = 1 << 25
"""Of one message. A program that answers with more has failed."""
MOST_FILE_BYTES = 1 << 20
MOST_DETAIL = 300
STARTED = "started"
"""What the tests' side says once both sides have started: from here on, what goes wrong is the program's doing."""

TYPES = {name: item for name, item in vars(builtins).items() if isinstance(item, type)}


def limit(cpu_seconds: int, memory: int, user: int | None) -> None:
    """Become `user`, give up all further processes and threads, and bound the rest for good.

    `cpu_seconds` are whole ones, and come on top of what starting has taken.
    """
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    for kind, most in (
        (resource.RLIMIT_CPU, math.ceil(time.process_time()) + cpu_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, MOST_FILE_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


class Gone(Exception):
    """The other side has ended."""


class Raised(Exception):
    """The program raised: its exception's name and text."""


class Line:
    """Messages over a socket, until a deadline."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.deadline: float | None = None
        os.set_blocking(number, False)

    def send(self, message: Any) -> None:
        """Raises Gone, TimeoutError, and ValueError for what JSON cannot hold."""
        data = json.dumps(message).encode("ascii")
        left = memoryview(len(data).to_bytes(8, "big") + data)
        while left:
            self._wait(writing=True)
            try:
                left = left[os.write(self.number, left) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Gone from None

    def receive(self) -> Any:
        """Raises Gone, TimeoutError, and ValueError for what is no message."""
        size = int.from_bytes(self._read(8), "big")
        if size > MOST_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(writing=False)
            try:
                part = os.read(self.number, min(1 << 16, size - len(data)))
            except BlockingIOError:
                continue
            except OSError:
                raise Gone from None
            if not part:
                raise Gone
            data += part
        return bytes(data)

    def _wait(self, writing: bool) -> None:
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        reading = [] if writing else [self.number]
        if not any(select.select(reading, [self.number] if writing else [], [], left)):
            raise TimeoutError


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """Plain data as JSON; `refer` names anything else. A subclass counts as its base."""
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return {"int": f"{int(value):x}"}
    if isinstance(value, list):
        return [encode(item, refer) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, refer) for item in value]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for name, builtin in TYPES.items():
        if value is builtin:
            return {"type": name}
    return refer(value)


def decode(value: Any, resolve: Callable[[str, Any], Any]) -> Any:
    """What `encode` wrote, in the built-in types themselves; `resolve` finds what `refer` named."""
    if isinstance(value, list):
        return [decode(item, resolve) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}
    if kind in ("tuple", "set", "frozenset"):
        items = [decode(item, resolve) for item in content]
        return tuple(items) if kind == "tuple" else set(items) if kind == "set" else frozenset(items)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        real, imaginary = content
        return complex(real, imaginary)
    if kind == "type":
        return TYPES[content]
    return resolve(kind, content)


def run(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Run source; what is random in it comes out the same each time."""
    if "random" in source:
        import random

        random.seed(0)
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


# The program's side


def serve(line: Line) -> None:
    """Load sources and answer calls until the other side is gone."""
    namespace: dict[str, Any] = {"__name__": "program"}
    kept: list[Any] = []

    def refer(value: Any) -> Any:
        kept.append(value)
        return {"object": len(kept) - 1}

    def resolve(kind: str, content: Any) -> Any:
        if kind == "object":
            return kept[content]
        if content not in namespace:
            raise NameError(f"name '{content}' is not defined")
        return namespace[content]

    def do(job: str, *parts: Any) -> Any:
        if job == "load":
            run(parts[0], "<program>", namespace)
            return None
        first, *others = (decode(part, resolve) for part in parts)
        if job == "call":
            return first(*others[0], **others[1])
        if job == "get":
            return getattr(first, others[0])
        if job == "set":
            return setattr(first, others[0], others[1])
        return list(first)

    line.send("ready")
    while True:
        message = line.receive()
        try:
            answer = ["value", encode(do(*message), refer)]
        except BaseException as error:  # SystemExit, too: a program that ends itself has not answered
            answer = ["raised", type(error).__name__, str(error)[:MOST_DETAIL]]
        line.send(answer)


# The tests' side


class Remote:
    """Something of the program's: called, read, set and iterated over there. It equals nothing but itself."""

    __slots__ = ("_ask", "_ref")

    def __init__(self, ask: Callable[..., Any], ref: Any) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_ref", ref)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions are not the program's to answer
            raise AttributeError(name)
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list", self))


def judge(
    line: Line,
    sources: list[str],
    helpers: str,
    tests: str,
    names: dict[str, str],
    seconds: float,
    patience: float,
) -> tuple[str, str]:
    """Load a program's sources over there; run helpers and tests here. `names` maps the tests' names to the program's.

    The program may take `seconds` of CPU time, `patience` on the clock. Returns the reason, `ok` for a pass, and a
    detail.
    """

    def refer(value: Any) -> Any:
        if type(value) is Remote:
            return value._ref
        raise TypeError(f"a {type(value).__name__} cannot be handed to the program")

    def ask(job: str, *parts: Any) -> Any:
        line.send([job, *(encode(part, refer) for part in parts)])
        kind, *answer = line.receive()
        if kind == "raised":
            raise Raised(f"{answer[0]}: {answer[1]}")
        return decode(answer[0], lambda what, content: Remote(ask, {"object": int(content)}))

    began = time.monotonic()
    line.deadline = began + patience
    try:
        for source in sources:
            line.send(["load", source])
            kind, *answer = line.receive()
            if kind == "raised":
                return "raised", f"{answer[0]}: {answer[1]}"
        namespace: dict[str, Any] = {"__name__": "tests"}
        run(helpers, "<helpers>", namespace)
        namespace |= {name: Remote(ask, {"name": theirs}) for name, theirs in names.items()}
        run(tests, "<tests>", namespace)
    except Raised as error:
        return "raised", str(error)
    except Gone:
        if time.monotonic() - began >= seconds:  # no sooner does the limit on CPU time end it, and it does not say so
            return "timeout", f"{seconds:g} seconds of CPU time"
        return "exited", "the program ended before its tests did"
    except TimeoutError:
        return "timeout", f"{patience:g} seconds"
    except AssertionError as error:
        return "wrong_answer", _failing_line(error, tests) + (f": {error}" if str(error) else "")
    except Exception as error:  # such as an answer of another type, or none at all
        return "wrong_answer", f"{_failing_line(error, tests)}: {type(error).__name__}: {error}"
    return "ok", ""


def started(line: Line) -> bool:
    """Whether the program's side is ready, and none of the program yet."""
    line.deadline = time.monotonic() + 60
    try:
        return bool(line.receive() == "ready")
    except (Gone, TimeoutError, ValueError):
        return False


def _failing_line(error: Exception, tests: str) -> str:
    import traceback

    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
    lines = tests.splitlines()
    return lines[numbers[-1] - 1].strip() if numbers and numbers[-1] and numbers[-1] <= len(lines) else ""


def main(role: str, number: int, cpu_seconds: int, memory: int, user: int | None = None) -> None:
    """`role` is `program` or `tests`; `number` is the socket's. Tests come by standard input."""
    limit(cpu_seconds, memory, user)
    line = Line(number)
    if role == "program":
        try:
            serve(line)
        except (Gone, ValueError):
            os._exit(0)
    said = sys.stdout
    if not started(line):
        said.write("the program's side does not answer\n")
        return
    said.write(STARTED + "\n")
    said.flush()
    sys.stdout = sys.stderr = None  # tests that print do so to nowhere
    reason, detail = judge(line, **json.load(sys.stdin))
    json.dump({"reason": reason, "detail": detail[:MOST_DETAIL]}, said)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
