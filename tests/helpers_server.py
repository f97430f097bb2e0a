"""A small OpenAI-compatible server on loopback that can be told to misbehave.

    python helpers_server.py PORT SECONDS [LATENCY]

is a process of it that can be killed; it ends by itself after so many seconds.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "served"
Reply = Callable[[dict[str, Any]], str]


@dataclass
class Fault:
    """What the server does in place of a good answer."""

    status: int = 200
    body: bytes | None = None
    """None: no body, and the connection is closed where the status is 200."""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Only so many bytes of the body are sent, then the connection is closed."""
    hang: float = 0.0
    """Seconds before anything is sent."""
    reset: bool = False
    """Nothing is sent, and the connection is reset (RST) rather than closed."""


def said(status: int, message: str, **headers: str) -> Fault:
    """An error as servers send it."""
    body = json.dumps({"error": {"message": message, "type": "made", "code": None}}).encode()
    return Fault(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class Served(ThreadingHTTPServer):
    """`plan(n, body)` gives the fault of the n-th request, counted from 0, or None; `reply` writes good replies."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, models: Sequence[str] = (MODEL,)) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.plan: Callable[[int, dict[str, Any]], Fault | None] = lambda n, body: None
        self.reply: Reply = lambda body: f"reply to {prompt_of(body)}"
        self.score: Callable[[list[int]], list[float]] | None = None
        """Log-probabilities of all tokens but the first; None: given texts are not scored."""
        self.scores_by = "prompt_logprobs"
        """Or `echo`; a server of that kind refuses the other field."""
        self.models = models
        self.listing = 200
        """With which status it lists them."""
        self.finish = "stop"
        self.seconds = 0.0
        self.at_once = 10_000
        """More requests at once than this are answered with 429."""
        self.answers: Callable[[int], int] = lambda n: n
        """Which request's answer the n-th request gets."""
        self.names: list[str] = []
        """The requests' X-Request-Id, which good answers repeat."""
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.active = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


class _Handler(BaseHTTPRequestHandler):
    server: Served
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in self.server.models]
        status = self.server.listing if self.path == "/v1/models" else 200
        self._send(status, json.dumps({"object": "list", "data": models}).encode(), {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served = self.server
        with served.lock:
            number = len(served.bodies)
            served.bodies.append(body)
            served.names.append(self.headers.get("X-Request-Id", ""))
            served.paths.append(self.path)
            served.keys.append(self.headers.get("Authorization"))
            served.times.append(time.monotonic())
            served.active += 1
            served.most = max(served.most, served.active)
            crowded = served.active > served.at_once
        try:
            fault = said(429, "too many") if crowded else served.plan(number, body)
            if fault is None:
                time.sleep(served.seconds)
                answered = served.answers(number)
                name = served.names[answered]
                answer = self._answer(served.bodies[answered]) | {"id": f"cmpl-{name}"}
                self._send(200, json.dumps(answer).encode(), {"X-Request-Id": name})
            else:
                self._misbehave(fault)
        finally:
            with served.lock:
                served.active -= 1

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.server.reply(body)
        if self.path.endswith("/chat/completions"):
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": text}
        choice |= {"index": 0, "finish_reason": self.server.finish}
        if self.server.score and self.server.scores_by in body:
            scores = self.server.score(body["prompt"])
            if self.server.scores_by == "echo":
                choice["logprobs"] = {"tokens": [], "token_logprobs": [None, *scores, -0.5]}
            else:
                pairs = zip(body["prompt"][1:], scores, strict=True)
                choice["prompt_logprobs"] = [None, *({str(token): {"logprob": score}} for token, score in pairs)]
        prompt_tokens, tokens = len(prompt_of(body).split()), len(text.split())
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
        return {"id": "1", "object": "made", "created": 0, "model": MODEL, "choices": [choice], "usage": used}

    def _misbehave(self, fault: Fault) -> None:
        time.sleep(fault.hang)
        if fault.reset:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # not close(), which waits for the two files made of it
        elif fault.body is None and fault.status == 200:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(fault.status, fault.body or b"", fault.headers, fault.cut_after)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(port: int = 0, models: Sequence[str] = (MODEL,)) -> Iterator[Served]:
    """The server, until the block ends."""
    server = Served(port, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as alone:
        alone.seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        time.sleep(float(sys.argv[2]))
