"""Selecting at 10,000, 100,000 and 1,000,000 rows: rows per second and peak memory. Each size in its own process.

python bench/selecting.py [--rows 10000 100000 1000000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from sdft.console import Console
from sdft.recipe import Recipe, load_recipe
from sdft.rundir import RunDir
from sdft.stages.select import run_select

WORDS = ["so", "they", "pay", "forty", "two", "dollars", "because", "each", "box", "holds", "three", "red", "balls"]


def recipe() -> Recipe:
    """The reference's checks for GSM8K."""
    return load_recipe(
        {"model": "none", "data": {"dataset": "none"}, "select": {"checks": ["leak", "number"]}, "methods": []}
    )


def write_run(folder: str, rows: int) -> None:
    """A run folder after distilling: about 75 words a row, half of the rewrites right, in no order."""
    run, draw = RunDir(folder), random.Random(0)
    for name in ("data", "distill"):
        (run / name).mkdir()
    with (run / "data/train.jsonl").open("w") as file:
        for number in range(rows):
            question, answer = (" ".join(draw.choices(WORDS, k=25)) for _ in range(2))
            reference = f"{answer}. The answer is {number}."
            row = {"instruction": question, "output": reference}
            turns = [{"role": "user", "content": question}]
            meta = {"row": row, "reply_column": "output"}
            line = {"id": f"id{number:08x}", "messages": turns, "reference": reference, "meta": meta}
            file.write(json.dumps(line) + "\n")
    order = list(range(rows))
    draw.shuffle(order)
    with (run / "distill/rewrites.jsonl").open("w") as file:
        for number in order:
            text = " ".join(draw.choices(WORDS, k=25)) + f". The answer is {number if draw.random() < 0.5 else 0}."
            line = {"example_id": f"id{number:08x}", "candidate": 0, "text": text}
            file.write(json.dumps(line | {"finish": "stop", "prompt_tokens": 100, "tokens": 30}) + "\n")


def measure(folder: str, pipe: Connection) -> None:
    """Select in a fresh process and send seconds and peak resident memory in bytes."""
    started = time.perf_counter()
    run_select(recipe(), RunDir(folder), Console(quiet=True))
    seconds = time.perf_counter() - started
    pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the rows of the table here too")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")  # a process's peak starts at its parent's, so this one stays small
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            writing = spawn.Process(target=write_run, args=(folder, rows))
            writing.start()
            writing.join()
            here, there = spawn.Pipe()
            process = spawn.Process(target=measure, args=(folder, there))
            process.start()
            there.close()
            seconds, memory = here.recv()
            process.join()
        results.append({"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "peak_bytes": memory})
        print(f"select {rows:>9,} rows  {rows / seconds:>8,.0f} rows/s  {memory / 2**20:>6.0f} MiB peak", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"select": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
