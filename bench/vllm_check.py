"""The real vLLM, on a CPU: served by `sdft serve`, and in process, each held against the engine `transformers`.

    make vllm-test
    SDFT_VLLM=.venv-vllm/bin/vllm python bench/vllm_check.py --rows 16

Distils and evaluates a few rows of GSM8K on a server, with an adapter trained in between, scores replies, and does the
same in process, with the merged export too, and in a replica on Ray. Prints figures; ends with 1 where
something is not as it should be. vLLM runs eagerly: to compile a model for so few rows takes longer than the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEW_TOKENS = 64
COMPARED = 6
"""Prompts that are answered greedily, and scored, by each engine."""
ALLOWED = 0.05
"""Nats that the log-probability of one token may differ by, in float32: rounding, and an adapter not merged."""


def measured(engine: Any, prompts: Sequence[str], replies: Sequence[str]) -> dict[str, Any]:
    """Greedy replies, seconds and tokens, and the log-probabilities of given replies."""
    from sdft.engines import Continuation, Request, Sampling

    requests = [Request(str(number), prompt, stop=("<|im_end|>",)) for number, prompt in enumerate(prompts)]
    list(engine.generate(requests[:1], Sampling(max_new_tokens=4)))  # whatever the first call makes
    started = time.perf_counter()
    found = {c.id: c for c in engine.generate(requests, Sampling(max_new_tokens=NEW_TOKENS))}
    seconds = time.perf_counter() - started
    items = [
        Continuation(str(n), prompt, reply) for n, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]
    return {
        "seconds": seconds,
        "tokens": sum(completion.tokens for completion in found.values()),
        "texts": [found[request.id].text for request in requests],
        "scores": [row.logprobs for row in engine.logprobs(items)],
    }


def in_process(folder: Path) -> None:
    """Run by the Python of vLLM's environment: both models, by the engine vllm."""
    from sdft.engines import RaySettings, VLLMSettings
    from sdft.models import ModelConfig

    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    settings = VLLMSettings(max_batch_size=32, max_model_len=1024, enforce_eager=True)
    done = {}
    for name, config in asked["models"].items():
        started = time.perf_counter()
        with closing(settings.open(ModelConfig.model_validate(config))) as engine:
            opened = time.perf_counter() - started
            done[name] = {"opened": opened, **measured(engine, asked["prompts"], asked["replies"])}
    on_ray = RaySettings(inner=settings, replicas=1, num_gpus=0)
    started = time.perf_counter()
    with closing(on_ray.open(ModelConfig.model_validate(asked["models"]["sdft"]))) as engine:
        opened = time.perf_counter() - started
        done["sdft on Ray"] = {"opened": opened, **measured(engine, asked["prompts"], asked["replies"])}
    (folder / "vllm.json").write_text(json.dumps(done), encoding="utf-8")


class Check:
    """Figures for people, and what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def say(self, what: str, text: str) -> None:
        print(f"| {what} | {text} |", flush=True)

    def compare(self, what: str, own: dict[str, Any], other: dict[str, Any]) -> None:
        """Hold an engine's replies and scores against those of `transformers`."""
        same = sum(a == b for a, b in zip(own["texts"], other["texts"], strict=True))
        pairs = [
            abs(a - b) for x, y in zip(own["scores"], other["scores"], strict=True) for a, b in zip(x, y, strict=True)
        ]
        worst = max(pairs)
        speed = f"{other['tokens'] / other['seconds']:.0f} tokens/s" if "seconds" in other else ""
        self.say(
            what, f"{same} of {len(own['texts'])} greedy replies as transformers'; log-probabilities of {len(pairs)} "
            f"tokens differ by at most {worst:.1e}; {speed}",
        )  # fmt: skip
        if worst > ALLOWED or not same:
            self.problems.append(f"{what}: {same} replies alike, log-probabilities differ by {worst:.3f}")


def rate(rows: int, tokens: int, seconds: float) -> str:
    return (
        f"{rows} rows, {tokens} tokens in {seconds:.0f} s: {rows / seconds:.2f} rows/s, {tokens / seconds:.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows to distil and to evaluate")
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        in_process(args.in_process)
        return
    with tempfile.TemporaryDirectory() as place:
        sys.exit(check(Path(place), args.rows))


def check(place: Path, rows: int) -> int:
    import yaml

    import sdft
    from sdft.console import Console
    from sdft.engines import TransformersSettings, open_engine
    from sdft.export import export_merged
    from sdft.models import ModelConfig, resolve
    from sdft.records import Example, Prediction, Rewrite
    from sdft.rendering import open_prompter
    from sdft.rundir import read_json, read_jsonl

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    found, quiet = Check(), Console(quiet=True)
    tree: dict[str, Any] = {
        "name": "check",
        "output_dir": str(place / "runs"),
        "model": {"name": MODEL, "device": "cpu", "dtype": "float32"},
        "data": {"dataset": "gsm8k_train", "limit": rows},
        "prompt": {"style": "chat"},
        "distill": {"max_new_tokens": NEW_TOKENS},
        "select": {"checks": ["leak"], "keep_truncated": True},
        "train": {"epochs": 1, "max_length": 512},
        "methods": ["sdft"],
        "evaluate": {"benchmarks": [{"name": "gsm8k", "limit": rows}], "sampling": {"max_new_tokens": NEW_TOKENS}},
        "analyze": {"nll": True, "similarity": False, "weights": False, "rows": COMPARED},
    }
    recipe = place / "check.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")

    started = time.perf_counter()
    with sdft.serve(str(recipe), arguments=["--enforce-eager", "--max-model-len", "1024"]) as server:
        found.say("serve: until it answers", f"{time.perf_counter() - started:.0f} s")
        port = int(server.base_url.rpartition(":")[2].partition("/")[0])
        engine = {"name": "openai", "base_url": server.base_url}
        tree["distill"]["engine"], tree["evaluate"]["engine"] = engine, engine | {"models": {"sdft": "sdft"}}
        started = time.perf_counter()
        folder = sdft.run(tree, console=quiet, only="distill").path
        seconds = time.perf_counter() - started
    rewrites = list(read_jsonl(folder / "distill/rewrites.jsonl", Rewrite))
    found.say("distil on the server", rate(len(rewrites), sum(r.tokens for r in rewrites), seconds))
    failed = [r.error for r in rewrites if r.finish == "error"]
    if len(rewrites) != rows or failed:
        found.problems.append(f"distil: {len(rewrites)} rows, failed: {failed}")

    sdft.run(tree, console=quiet, only="select")
    sdft.run(tree, console=quiet, only="train")
    loaded = sdft.load_recipe(tree)
    folder_of = {"seed": loaded.model, "sdft": loaded.model.model_copy(update={"adapter": str(folder / "train/sdft")})}
    examples = list(read_jsonl(folder / "data/train.jsonl", Example))[:COMPARED]
    prompter = open_prompter(loaded.prompt, TransformersSettings(), loaded.model)
    prompts = [prompter.renderer.infer(example).text for example in examples]
    replies = [example.reference for example in examples]
    own: dict[str, Any] = {}
    for name, config in folder_of.items():
        with closing(TransformersSettings().open(config)) as transformers:
            own[name] = measured(transformers, prompts, replies)
        found.say(f"transformers: {name}", f"{own[name]['tokens'] / own[name]['seconds']:.0f} tokens/s")
    if own["seed"]["scores"] == own["sdft"]["scores"]:
        found.problems.append("the adapter changes nothing, so that nothing is shown")

    with sdft.serve(str(folder), port=port, arguments=["--enforce-eager", "--max-model-len", "1024"]):
        started = time.perf_counter()
        sdft.run(tree, console=quiet, only="eval")
        seconds = time.perf_counter() - started
        predictions = [
            row for name in folder_of for row in read_jsonl(folder / f"eval/{name}/gsm8k/predictions.jsonl", Prediction)
        ]
        found.say(
            "evaluate seed and adapter on the server",
            rate(len(predictions), sum(row.tokens for row in predictions), seconds),
        )
        if len(predictions) != 2 * rows or any(row.finish == "error" for row in predictions):
            found.problems.append("evaluate: rows are missing or failed")
        text = loaded.evaluate.engine.model_copy(update={"endpoint": "completions"})
        for name, config in folder_of.items():
            with closing(open_engine(text, name, config)) as asked:
                found.compare(f"served: {name}", own[name], measured(asked, prompts, replies))
        sdft.run(tree, console=quiet, only="analyze")
        likelihoods = read_json(folder / "analyze/nll.json")["replies"]
        found.say("likelihood of replies on the server", f"{len(likelihoods)} means, of models and kinds of reply")
        if not likelihoods:
            found.problems.append("analyze: no likelihood was measured on the server")

    models = {
        name: config.model_copy(update={"name": str(resolve(config))}).model_dump()
        for name, config in folder_of.items()
    }
    merged = export_merged(str(folder), "sdft", place / "merged", None)
    config = ModelConfig(name=str(merged), device="cpu", dtype="float32")
    with closing(TransformersSettings().open(config)) as transformers:
        own["merged"] = measured(transformers, prompts, replies)
    models["merged"] = config.model_dump()
    asked_for = {"models": models, "prompts": prompts, "replies": replies}
    (place / "asked.json").write_text(json.dumps(asked_for), encoding="utf-8")
    python = Path(os.environ.get("SDFT_VLLM", ".venv-vllm/bin/vllm")).with_name("python")
    source = str(Path(__file__).resolve().parents[1] / "src")
    ran = subprocess.run(
        [str(python), __file__, "--in-process", str(place)], env={**os.environ, "PYTHONPATH": source}, check=False
    )
    if ran.returncode:
        found.problems.append(f"in process: exit code {ran.returncode}")
    else:
        for name, done in json.loads((place / "vllm.json").read_text(encoding="utf-8")).items():
            theirs = own[name.removesuffix(" on Ray")]
            found.compare(f"in process: {name} (opened in {done['opened']:.0f} s)", theirs, done)
    for problem in found.problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if found.problems else 0


if __name__ == "__main__":
    main()
