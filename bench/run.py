"""All measurements in one table, from one run on this machine: `make bench`.

    python bench/run.py [--quick]

Distilling, training, start-up, selecting; each in its own process, one after the other. The table is printed and
written to `bench/results.md`, for docs/performance.md. `--quick` takes fewer rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def script(name: str, *arguments: str) -> dict[str, Any]:
    """Run one of the scripts beside this one and return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        subprocess.run([sys.executable, str(HERE / name), *arguments, "--json", str(out)], check=True)
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return measured


def start_up(*arguments: str) -> float:
    """Median seconds of five calls of `sdft`, after one that warms the disk cache."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("sdft")), *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half the prompts, and no million rows")
    quick = parser.parse_args().quick
    lines = [f"{platform.processor() or platform.machine()}, Python {platform.python_version()}", ""]
    lines += ["| what | measured | wanted |", "|---|---|---|"]

    def row(what: str, measured: str, wanted: str = "") -> None:
        lines.append(f"| {what} | {measured} | {wanted} |")

    for command in (["--help"], ["check", "recipes/demo.yaml"]):
        row(f"start-up: `sdft {' '.join(command)}`", f"{start_up(*command):.2f} s", "under 0.5 s")

    made = script("generate.py", "--rows", "32" if quick else "64")
    for item in made["rows"]:
        row(f"distil: {item['name']}", f"{item['rate']:.1f} tokens/s ({item['rows']} rows)")
    row("distil: (c) / the faster (a)", f"{made['ratio_a']:.1f} ×", "10 ×")
    row("distil: (c) / the faster (b)", f"{made['ratio_b']:.1f} ×", "2.5 ×")
    row(
        "distil: greedy replies of (c) that differ from (a)",
        f"{made['differ']} of {made['of']}, largest logit margin {made['largest_margin']:.2g}",
        "only at near-ties",
    )
    row(
        "distil: floor",
        f"{made['floor_seconds']:.0f} s of products at {made['gflops']:.0f} GFLOP/s; memory {made['gbytes']:.0f} GB/s",
    )

    trained = script("train.py", "--rows", "8")
    for item in trained["rows"]:
        row(
            f"train: {item['name']}",
            f"{item['rate']:.0f} tokens/s, loss differs from ours by {item['loss_gap_mean']:.1e} on average",
        )
    rates = [item["rate"] for item in trained["rows"]]
    row("train: ours / TRL's defaults", f"{rates[-1] / rates[0]:.2f} ×", "1.5 ×")

    for item in script("selecting.py", *(["--rows", "10000", "100000", "300000"] if quick else []))["select"]:
        row(
            f"select: {item['rows']:,} rows",
            f"{item['rows_per_second']:,.0f} rows/s, peak {item['peak_bytes'] / 2**20:.0f} MiB",
            "linear time, flat memory",
        )
    table = "\n".join(lines)
    print("\n" + table)
    (HERE / "results.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
