"""The engine `openai` under load: many rows through the distill stage against a loopback server with faults.

    python bench/load.py [--rows 100000] [--concurrency 64] [--faults 0.05] [--seconds 900] [--json FILE]

The server is a process of its own that waits a random 5 to 45 ms for each reply, and answers one request in twenty
with 429, 500, 503, a reset connection, half a JSON, two choices, no body, or not at all. Its own limit is measured
first, by a bare client in another process that keeps as many requests in flight, on the same connections throughout,
and reads no reply. So is what the official client costs, alone in a process, at a server that answers at once: CPU
seconds a request. Then all rows are distilled by this process. Checked (else exit code 1): every row is there once and
none failed; memory grew by no more than `--growth` after the first fifth. It stops by itself after `--seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sdft.console import Console
from sdft.recipe import load_recipe
from sdft.records import Rewrite
from sdft.rundir import RunDir, read_jsonl

LATENCY = (0.005, 0.045)
"""Seconds, evenly drawn."""
FAULTS = ("429", "500", "503", "reset", "half", "two", "empty", "stall")
TIMEOUT = 5.0
"""Seconds that the client waits; a stall lasts twice as long."""
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def answer(text: str, name: str, choices: int = 1) -> bytes:
    """A whole answer in OpenAI's form."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    body = {"id": f"chatcmpl-{name}", "object": "chat.completion", "created": 0, "model": "served", "usage": USAGE}
    return json.dumps(body | {"choices": [choice] * choices}).encode()


def response(status: int, body: bytes) -> bytes:
    """With the headers that HTTP wants."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    draw: random.Random,
    rate: float,
    seen: Counter[str],
    latency: tuple[float, float],
) -> None:
    """One connection, until it is closed."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            request = json.loads(await reader.readexactly(int(fields["content-length"])))
            text = "It is so: " + request["messages"][-1]["content"].split("plus")[0].split()[-1]
            await asyncio.sleep(draw.uniform(*latency))
            fault = draw.choice(FAULTS) if draw.random() < rate else ""
            if fault == "stall" and draw.random() < 0.9:
                fault = "reset"  # few: each holds one of the client's places for seconds
            seen[fault or "good"] += 1
            name = fields.get("x-request-id", "")
            if fault == "reset":
                writer.transport.abort()
                return
            if fault == "stall":
                await asyncio.sleep(2 * TIMEOUT)
            if fault.isdigit():
                writer.write(response(int(fault), b'{"error": {"message": "made"}}'))
            elif fault == "half":
                whole = response(200, answer(text, name))
                writer.write(whole[: -len(whole) // 3])
                await writer.drain()
                writer.close()
                return
            elif fault == "empty":
                writer.write(response(200, b""))
            else:
                writer.write(response(200, answer(text, name, 2 if fault == "two" else 1)))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        writer.close()


def serve(pipe: Connection, rate: float, seconds: float, latency: tuple[float, float] = LATENCY) -> None:
    """Answer until told to stop, or the time is up; then say what was answered."""

    async def work() -> None:
        draw, seen = random.Random(0), Counter[str]()
        started = time.monotonic()
        server = await asyncio.start_server(
            lambda reader, writer: converse(reader, writer, draw, rate, seen, latency), "127.0.0.1", 0, backlog=1024
        )
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll() and time.monotonic() - started < seconds:
            await asyncio.sleep(0.1)
        with suppress(OSError):  # nobody listens any more
            pipe.send(dict(seen))

    asyncio.run(work())


def limit_of(port: int, concurrency: int, seconds: float, pipe: Connection) -> None:
    """Send how many good answers a second the server gives to a client that does nothing with them."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "1 plus 4 is"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    asked, count = head.encode() + body, 0

    async def one(until: float) -> None:
        nonlocal count
        while time.monotonic() < until:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                while time.monotonic() < until:
                    writer.write(asked)
                    headers = await reader.readuntil(b"\r\n\r\n")
                    length = int(headers.lower().rpartition(b"content-length:")[2].split()[0])
                    await reader.readexactly(length)
                    count += headers.startswith(b"HTTP/1.1 200")
                writer.close()
            except (ConnectionError, asyncio.IncompleteReadError):
                continue

    async def work() -> None:
        until = time.monotonic() + seconds
        async with asyncio.timeout(seconds + 3 * TIMEOUT):
            await asyncio.gather(*(one(until) for _ in range(concurrency)))

    started = time.monotonic()
    asyncio.run(work())
    pipe.send(count / min(time.monotonic() - started, seconds))


def client_cost(port: int, concurrency: int, requests: int, pipe: Connection) -> None:
    """Send how many CPU seconds of this process the official client takes for a request, and nothing else in it."""
    import openai

    async def work() -> float:
        client = openai.AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
        left = iter(range(requests))

        async def one() -> None:
            for number in left:
                turn = {"role": "user", "content": f"{number} plus 4 is"}
                await client.chat.completions.create(model="m", messages=[turn])  # type: ignore[list-item]

        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "1 plus 4 is"}])
        started = time.process_time()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        return (time.process_time() - started) / requests

    pipe.send(asyncio.run(work()))


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(path: Path, rows: int, stop: threading.Event, seen: dict[int, int], deadline: float) -> None:
    """Note memory at each tenth of the rows; end the process where the time is up."""
    written = size = 0
    while not stop.wait(0.25):
        if time.monotonic() > deadline:
            print("the time is up", flush=True)
            os._exit(1)
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(size)
            new = file.read()
        size += len(new)
        written += new.count(b"\n")
        seen.setdefault(10 * written // rows, resident())


def distil(port: int, rows: int, concurrency: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Distil all rows and check them."""
    from sdft.stages.distill import run_distill

    engine = {"name": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "max_concurrency": concurrency}
    recipe = load_recipe(
        {
            "model": "org/served",
            "data": {"dataset": "none"},
            "prompt": {"style": "chat"},
            "distill": {"engine": {**engine, "timeout": TIMEOUT, "max_retries": 10}},
            "methods": [],
        }
    )
    run = RunDir(folder)
    (run / "data").mkdir()
    with (run / "data/train.jsonl").open("w") as file:
        for number in range(rows):
            turns = [{"role": "user", "content": f"{number} plus 4 is"}]
            file.write(json.dumps({"id": f"id{number:08x}", "messages": turns, "reference": str(number + 4)}) + "\n")
    stop, memory = threading.Event(), dict[int, int]()
    arguments = (run / "distill/rewrites.jsonl", rows, stop, memory, time.monotonic() + seconds)
    watching = threading.Thread(target=watch, args=arguments, daemon=True)
    watching.start()
    started, worked = time.monotonic(), time.process_time()
    notes = run_distill(recipe, run, Console())
    took, worked = time.monotonic() - started, time.process_time() - worked
    memory[10] = resident()
    stop.set()
    watching.join()
    found = Counter(row.example_id for row in read_jsonl(run / "distill/rewrites.jsonl", Rewrite))
    failed = sum(row.finish != "stop" for row in read_jsonl(run / "distill/rewrites.jsonl", Rewrite))
    mixed = sum(
        row.text.rpartition(" ")[2] != str(int(row.example_id[2:], 16))
        for row in read_jsonl(run / "distill/rewrites.jsonl", Rewrite)
        if row.finish == "stop"
    )
    early = memory.get(2, memory.get(3, memory[10]))
    return {
        "rows": rows,
        "missing": rows - len(found),
        "doubled": found.total() - len(found),
        "failed": failed,
        "with_anothers_reply": mixed,
        "seconds": took,
        "rows_per_second": rows / took,
        "cpu_seconds_a_row": worked / rows,
        "requests": (run / "distill/requests.txt").stat().st_size,
        "memory_at_a_fifth": early,
        "memory_at_the_end": memory[10],
        "bytes_a_row_after_a_fifth": max(0, memory[10] - early) / (0.8 * rows),
        "notes": notes,
    }


def main() -> None:
    """Measure, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--faults", type=float, default=0.05, help="share of requests")
    parser.add_argument("--seconds", type=float, default=900.0, help="at most, for all of it")
    parser.add_argument("--limit-seconds", type=float, default=10.0, help="for the server's own limit")
    parser.add_argument("--growth", type=float, default=64.0, help="MiB of memory between a fifth and the end, at most")
    parser.add_argument("--client-requests", type=int, default=1000, help="for what the official client costs")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(there, asked.faults, asked.seconds + 30), daemon=True)
    server.start()
    port = here.recv()
    mine, its = spawn.Pipe()
    bare = spawn.Process(target=limit_of, args=(port, asked.concurrency, asked.limit_seconds, its), daemon=True)
    bare.start()
    limit = mine.recv()
    bare.join()
    quick, its = spawn.Pipe()
    at_once = spawn.Process(target=serve, args=(its, 0.0, asked.seconds + 30, (0.0, 0.0)), daemon=True)
    at_once.start()
    arguments = (quick.recv(), asked.concurrency, asked.client_requests)
    mine, its = spawn.Pipe()
    client = spawn.Process(target=client_cost, args=(*arguments, its), daemon=True)
    client.start()
    its.close()  # so that a client that dies is an end of file here
    cost = mine.recv()
    client.join()
    quick.send("stop")
    at_once.join()
    with tempfile.TemporaryDirectory() as folder:
        made = distil(port, asked.rows, asked.concurrency, asked.seconds, Path(folder))
    here.send("stop")
    made |= {"client_cpu_seconds_a_request": cost}
    made |= {"server_rows_per_second": limit, "share_of_limit": made["rows_per_second"] / limit, "sent": here.recv()}
    server.join()
    grown = (made["memory_at_the_end"] - made["memory_at_a_fifth"]) / 2**20
    print(
        f"{made['rows']:,} rows in {made['seconds']:.0f} s: {made['rows_per_second']:.0f} rows/s of the server's own "
        f"{limit:.0f}; {made['missing']} missing, {made['doubled']} doubled, {made['failed']} failed, "
        f"{made['with_anothers_reply']} with another's reply; {made['requests']:,} requests; memory "
        f"{made['memory_at_a_fifth'] / 2**20:.0f} MiB at a fifth, {made['memory_at_the_end'] / 2**20:.0f} MiB at the "
        f"end ({made['bytes_a_row_after_a_fifth']:.0f} bytes a row)\n"
        f"CPU: the official client alone {1000 * cost:.1f} ms a request; all of distil "
        f"{1000 * made['cpu_seconds_a_row']:.1f} ms a row"
    )
    if asked.json:
        asked.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    if grown > asked.growth:
        raise SystemExit(
            f"memory grew by {grown:.0f} MiB after a fifth of the rows; at most {asked.growth:g} are allowed"
        )
    if made["missing"] or made["doubled"] or made["failed"] or made["with_anothers_reply"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
