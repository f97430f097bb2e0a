"""Servers and callers that die: real processes on loopback, killed in the middle. Every row is there once."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("openai")

import sdft
from helpers_pipeline import scripted_recipe
from helpers_server import MODEL
from sdft.engines import OpenAISettings, Request, Sampling
from sdft.engines import _servers as servers
from sdft.models import ModelConfig
from sdft.records import Message, Rewrite
from sdft.rundir import read_json, read_jsonl

HERE = Path(__file__).parent
ROWS = 120


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def server_process(port: int, latency: float = 0.02) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "helpers_server.py"), str(port), "240", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def recipe(folder: Path, port: int, **engine: Any) -> Path:
    settings = {"name": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "models": {"seed": MODEL}, **engine}
    tree = scripted_recipe(
        folder,
        rows=ROWS,
        model="org/model",
        prompt={"style": "chat"},
        distill={"engine": settings, "max_new_tokens": 16},
    )
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def rows_of(run: Path) -> Counter[str]:
    path = run / "distill/rewrites.jsonl"
    return Counter(row.example_id for row in read_jsonl(path, Rewrite)) if path.exists() else Counter()


def all_there_once(run: Path) -> bool:
    rows = list(read_jsonl(run / "distill/rewrites.jsonl", Rewrite))
    examples = [json.loads(line)["id"] for line in (run / "data/train.jsonl").read_text().splitlines()]
    return sorted(row.example_id for row in rows) == sorted(examples) and all(row.finish == "stop" for row in rows)


def interrupted(path: Path, run: Path, after: int, how: signal.Signals) -> tuple[int, str]:
    """Start `sdft distill`, send the signal once so many rows are there; exit code and what it said."""
    command = [sys.executable, "-m", "sdft.cli", "distill", str(path), "-q"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 120
        while rows_of(run).total() < after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        _, said = process.communicate()
    return process.returncode, said


def test_killed_and_interrupted_while_it_asks_a_server_it_ends_with_each_row_once(tmp_path: Path) -> None:
    port = free_port()
    path, run = recipe(tmp_path, port, max_concurrency=4), tmp_path / "runs/run"
    with server_process(port):
        assert interrupted(path, run, 20, signal.SIGKILL)[0] == -signal.SIGKILL
        assert 20 <= rows_of(run).total() < ROWS
        code, said = interrupted(path, run, 60, signal.SIGINT)
        assert code == 130 and "goes on from here" in said and "Traceback" not in said
        assert 60 <= rows_of(run).total() < ROWS
        sdft.run(path, only="distill")
    assert all_there_once(run)
    sent = (run / "distill/requests.txt").read_text()
    assert ROWS < len(sent) <= ROWS + 2 * 4, "at most those in flight are asked for again"
    notes = [note for note in read_json(run / "manifest.json")["notes"] if "requests" in note]
    assert notes == [
        f"distill: {len(sent)} requests for {ROWS} rows: 0 sent again after a fault of the server, "
        f"{len(sent) - ROWS} lost in flight when the run was interrupted"
    ]


def test_a_server_that_is_killed_and_started_again_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LAST_PAUSE", 0.5)
    port = free_port()
    requests = [Request(str(n), "", n, messages=(Message(role="user", content=f"q {n}"),)) for n in range(60)]
    settings = OpenAISettings(base_url=f"http://127.0.0.1:{port}/v1", max_concurrency=4, patience=60)
    found: dict[str, str] = {}
    with closing(settings.open(ModelConfig(name=MODEL))) as engine:
        replies = engine.generate(iter(requests), Sampling())
        with server_process(port) as process:
            for _ in range(20):
                completion = next(replies)
                found[completion.id] = completion.text
            process.kill()
            process.wait()
        with server_process(port):
            for completion in replies:
                assert completion.id not in found
                found[completion.id] = completion.text
    assert found == {str(n): f"reply to q {n}" for n in range(60)}


def test_where_all_servers_are_dead_the_run_stops_and_goes_on_later(tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    urls = [f"http://127.0.0.1:{number}/v1" for number in (port, other)]
    path = recipe(tmp_path, port, max_concurrency=4, base_url=urls, patience=1.0)
    run = tmp_path / "runs/run"
    with server_process(port) as first, server_process(other) as second:
        command = [sys.executable, "-m", "sdft.cli", "distill", str(path), "-q"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while rows_of(run).total() < 20 and process.poll() is None:
                time.sleep(0.02)
            first.kill()
            second.kill()
            _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and said.count("\n") == 1
    assert "(and 1 more)" in said and "cannot be reached" in said and "Give the same command again" in said
    kept = rows_of(run)
    assert 20 <= kept.total() < ROWS
    with server_process(other):  # one of them is back
        sdft.run(path, only="distill")
    assert all_there_once(run)
    assert not kept - rows_of(run)


@pytest.mark.slow
def test_load(tmp_path: Path) -> None:
    """2,000 rows, 5 % faults; `bench/load.py` takes 100,000."""
    out = tmp_path / "measured.json"
    script = HERE.parent / "bench/load.py"
    limits = ["--seconds", "240", "--limit-seconds", "1", "--client-requests", "50", "--growth", "30"]
    arguments = ["--rows", "2000", *limits, "--json", str(out)]
    said = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    measured = read_json(out)
    assert (measured["missing"], measured["doubled"], measured["failed"], measured["with_anothers_reply"]) == (0,) * 4
    assert measured["requests"] >= 2000 + 0.02 * 2000, "there were faults, and they were got over"
    assert sum(count for fault, count in measured["sent"].items() if fault != "good") > 0
    assert measured["client_cpu_seconds_a_request"] > 0


def test_every_test_that_the_table_names_is_there() -> None:
    text = (HERE.parent / "docs/reliability.md").read_text(encoding="utf-8")
    file = ""
    named = re.findall(r"`(test_\w+\.py)?::(test_\w+)`", text)
    assert len(named) > 30
    for found, name in named:
        file = found or file
        assert f"def {name}(" in (HERE / file).read_text(encoding="utf-8"), f"{file}::{name}"
