"""A small hub on loopback that takes repositories and commits, by the requests of the hub's own client."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_a-token-that-may-write"


@dataclass
class Hub:
    """What was asked of it, and what it holds."""

    address: str
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository, as `models/me/mine`, to path to content."""


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """A hub, until the block ends. Who comes without TOKEN may do nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            elif self.path == "/api/validate-yaml":  # of the card
                front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
                errors = [] if isinstance(front, dict) else [{"message": "the card has no metadata"}]
                self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                hub.created.append(asked)
                kind = "datasets/" * (asked.get("type") == "dataset")
                self.answer(200, {"url": f"{hub.address}/{kind}{asked['organization']}/{asked['name']}"})
            elif found := re.fullmatch(r"/api/(.+)/preupload/main", self.path):
                files = json.loads(body)["files"]
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                self.answer(200, {"files": modes})
            elif found := re.fullmatch(r"/api/(.+)/commit/main", self.path):
                lines = [json.loads(line) for line in body.splitlines()]
                hub.files[found[1]] = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                page = f"{hub.address}/{found[1].removeprefix('models/')}/commit/{'0' * 40}"
                self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": page})
            else:
                self.answer(404, {"error": self.path})

        def do_GET(self) -> None:
            self.answer(404, {"error": self.path})

        def answer(self, code: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
