"""A command that stands in for `vllm`: a real HTTP server on loopback that writes down what it was given.

FAKE_VLLM says what it does: `well` (as where it is not set), `dies` before it answers, `ends` a moment after it does,
`silent` never answers, `stubborn` ignores SIGTERM. FAKE_VLLM_NOTES is a file for its arguments, process id and that
of a child, which a server that loads models has, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers_server import serving


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    for option in ("--host", "--served-model-name", "--dtype", "--max-lora-rank", "--max-loras", "--max-model-len"):
        parser.add_argument(option)
    parser.add_argument("--port", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--no-enable-chunked-prefill", action="store_true")
    parser.add_argument("--lora-target-modules", nargs="+")
    parser.add_argument("--lora-modules", nargs="+", default=[])
    given = parser.parse_args()
    kind = os.environ.get("FAKE_VLLM", "well")
    if kind == "dies":
        sys.stderr.write(
            "\n".join(
                [
                    "much before",
                    "KeyError: the cause",
                    *("wreck" for _ in range(40)),
                    "ValueError: no such architecture",
                ]
            )
        )
        sys.exit(3)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    notes = Path(os.environ["FAKE_VLLM_NOTES"])
    part = notes.with_suffix(".part")
    part.write_text(json.dumps({**vars(given), "pid": os.getpid(), "child": child.pid}), encoding="utf-8")
    part.replace(notes)
    if kind == "silent":
        time.sleep(60)
    names = [given.served_model_name, *(module.partition("=")[0] for module in given.lora_modules)]
    with serving(given.port, names):
        time.sleep(0.3 if kind == "ends" else 60)
        sys.stderr.write("out of memory\n")
        os._exit(1)


if __name__ == "__main__":
    main()
