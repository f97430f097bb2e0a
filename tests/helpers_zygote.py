"""A process that has imported everything and forks a child for each run asked for: quick to start, safe to kill.

Reads JSON lines {"recipe": …, "log": path}; answers {"pid": n} and, when that child has ended, {"status": n}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def work(recipe: dict[str, object], log: str) -> int:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import sdft
    from sdft.console import Console

    try:
        sdft.run(recipe, console=Console())
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401
    from matplotlib.figure import Figure  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401

    import sdft.engines.transformers
    import sdft.stages.train
    import sdft.training._trainer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(work(asked["recipe"], asked["log"]))
        sys.stdout.write(json.dumps({"pid": pid}) + "\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
