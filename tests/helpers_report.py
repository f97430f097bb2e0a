"""A synthetic run folder for the report's tests, with numbers of a real pilot run."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from sdft.records import (
    CandidateVerdict,
    Choice,
    Comparison,
    Example,
    Message,
    Prediction,
    ReplyNll,
    Score,
    Shift,
    Verdict,
)
from sdft.rundir import write_json, write_jsonl

OK = Verdict(ok=True, reason="ok")
GROUPS = ("writing", "facts", "code", "maths", "advice", "translation", "touchy", "harmful")


def fail(reason: str, detail: str = "") -> Verdict:
    return Verdict(ok=False, reason=reason, detail=detail)


def demo_run(folder: Path, methods: tuple[str, ...] = ("sft", "sdft"), rows: int = 600) -> Path:
    """A whole, finished run: seed 12 of 100, vanilla 52, SDFT 41; drift 0.203 and 0.062; words 56, 8, 56."""
    write_manifest(folder, methods)
    write_data(folder, rows)
    if "sdft" in methods:
        write_selection(folder, rows)
    for method in methods:
        write_training(folder, method)
    write_eval(folder, methods)
    return folder


def recipe(methods: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": "demo",
        "model": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "dtype": "auto"},
        "data": {"dataset": "reasoning_gym", "limit": 600, "options": {"task": "chain_sum", "seed": 1}},
        "methods": list(methods),
        "evaluate": {"benchmarks": [{"name": "reasoning_gym", "limit": 100}, {"name": "drift"}]},
        "seed": 0,
    }


def write_manifest(folder: Path, methods: tuple[str, ...] = ("sft", "sdft"), **changes: Any) -> None:
    manifest = {
        "sdft": "0.1.0",
        "name": "demo",
        "created": "2026-11-21T10:42:07+00:00",
        "recipe": recipe(methods),
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.19.0", "trl": "1.16.0"},
        "hardware": {"processor": "x86_64", "cores": 2, "memory_bytes": 16_800_000_000, "gpus": []},
        "hashes": {"data/train.jsonl": "9f" * 32, "select/distilled.jsonl": "ab" * 32},
        "seed": 0,
        "durations": {"distill": 141.2, "select": 0.6, "train": 322.0, "evaluate": 188.4},
        "notes": ["100 test rows: differences under about 10 points are within noise."],
    }
    write_json(folder / "manifest.json", manifest | changes)
    (folder / "recipe.yaml").write_text("name: demo\nmodel: HuggingFaceTB/SmolLM2-135M-Instruct\n", encoding="utf-8")


def write_data(folder: Path, rows: int) -> None:
    examples = (
        Example(
            id=f"chain_sum-{i:04d}",
            messages=(Message(role="user", content=f"State the final answer to the following problem: {i} - 57 ="),),
            reference=str(i - 57),
        )
        for i in range(rows)
    )
    write_jsonl(folder / "data" / "train.jsonl", examples)


def choice(i: int, original: str | None = None, reply: str | None = None) -> Choice:
    """Rows of all kinds: seven of ten accepted, some at the second candidate, one identical, three refused."""
    original = original if original is not None else str(i - 57)
    reply = reply if reply is not None else f"The answer to the arithmetic problem is {i - 57}."
    wrong = CandidateVerdict(
        candidate=0, text=f"The answer is {i}.", verdict=fail("number_differs", f"{i} != {i - 57}")
    )
    kind = i % 10
    if kind in (0, 1, 2):
        reasons = (fail("number_differs", f"{i} != {i - 57}"), fail("leak", "reference answer"), fail("cut_off"))
        verdict = reasons[kind]
        tried = tuple(CandidateVerdict(candidate=c, text=f"{reply} Or {i}.", verdict=verdict) for c in (0, 1))
        return Choice(
            example_id=f"chain_sum-{i:04d}",
            response=original,
            source="original",
            verdict=verdict,
            candidate=None,
            original=original,
            candidates=tried,
        )
    taken = 1 if kind in (3, 4) else 0
    text, verdict = (original, Verdict(ok=True, reason="identical")) if kind == 5 else (reply, OK)
    chosen = CandidateVerdict(candidate=taken, text=text, verdict=verdict)
    return Choice(
        example_id=f"chain_sum-{i:04d}",
        response=text,
        source="rewrite",
        verdict=verdict,
        candidate=taken,
        original=original,
        candidates=(wrong, chosen) if taken else (chosen,),
    )


def write_selection(folder: Path, rows: int) -> None:
    choices = [choice(i) for i in range(rows)]
    write_jsonl(folder / "select" / "choices.jsonl", choices)
    rewritten = [c for c in choices if c.source == "rewrite"]
    summary = {
        "examples": rows,
        "rewritten": len(rewritten),
        "kept": rows - len(rewritten),
        "identical": sum(c.response == c.original for c in rewritten),
        "share_rewritten": len(rewritten) / max(rows, 1),
        "reasons": dict(Counter(c.verdict.reason for c in choices)),
        "candidate_reasons": dict(Counter(v.verdict.reason for c in choices for v in c.candidates)),
        "accepted_at": [sum(c.candidate == n for c in rewritten) for n in (0, 1)],
        "length": {
            "original": {"mean_words": 1.0, "median_words": 1},
            "chosen": {"mean_words": 6.4, "median_words": 8},
            "histogram": {
                "edges": [0, 1, 2, 4, 8, 16, 32, 64],
                "original": [0, 600, 0, 0, 0, 0, 0, 0],
                "chosen": [0, 193, 11, 54, 290, 41, 11, 0],
            },
        },
    }
    write_json(folder / "select" / "summary.json", summary)


def write_training(folder: Path, method: str) -> None:
    start = {"sft": 3.4}.get(method, 1.3)
    rng = random.Random(method)
    log = [
        {"step": s, "loss": start * (0.35 + 0.65 / (1 + s / 12)) * rng.uniform(0.93, 1.07), "learning_rate": 5e-4}
        for s in range(1, 77)
    ]
    write_json(folder / "train" / method / "trainer_state.json", {"log_history": [*log, {"step": 76, "train_loss": 1}]})
    training = {
        "method": method,
        "rows": 600,
        "tokens": 37_840,
        "supervised_tokens": 2_412 if method == "sft" else 6_930,
        "truncated": 0,
        "skipped": 0,
        "data_sha256": "cd" * 32,
        "seconds": 101.7,
        "tokens_per_second": 744.2,
        "peak_memory_bytes": 1_612_345_344,
    }
    write_json(folder / "train" / method / "training.json", training)


ACCURACY = {"seed": (0.12, 0.07, 0.198), "sft": (0.52, 0.423, 0.615), "sdft": (0.41, 0.319, 0.508)}
DRIFT = {"sft": (0.203, 0.171, 0.238), "sdft": (0.062, 0.053, 0.072)}
AGREEMENT = {"sft": (0.871, 0.85, 0.89), "sdft": (0.931, 0.92, 0.941)}
WORDS = {"seed": (56.2, 49.0, 63.8), "sft": (8.1, 6.0, 10.7), "sdft": (55.9, 48.8, 63.1)}
DIFFERENCES = {
    ("sft", "seed", "reasoning_gym", "accuracy"): (0.40, 0.30, 0.49, 100, 1e-9),
    ("sdft", "seed", "reasoning_gym", "accuracy"): (0.29, 0.19, 0.39, 100, 2e-6),
    ("sdft", "sft", "reasoning_gym", "accuracy"): (-0.11, -0.21, -0.01, 100, 0.043),
    ("sdft", "sft", "drift", "kl"): (-0.141, -0.172, -0.112, 60, None),
    ("sft", "seed", "drift", "reply_words"): (-48.1, -56.0, -40.9, 60, None),
    ("sdft", "seed", "drift", "reply_words"): (-0.3, -5.1, 4.4, 60, None),
    ("sdft", "sft", "drift", "reply_words"): (47.8, 40.6, 55.6, 60, None),
}


def score(model: str, benchmark: str, metric: str, values: tuple[float, float, float], n: int, **rest: Any) -> Score:
    value, low, high = values
    return Score(model=model, benchmark=benchmark, metric=metric, value=value, low=low, high=high, n=n, **rest)


def write_scores(folder: Path, model: str, label: str, role: str, scores: list[Score], **changes: Any) -> None:
    body = {
        "model": model,
        "benchmark": scores[0].benchmark,
        "label": label,
        "role": role,
        "n": scores[0].n,
        "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 48},
        "main": scores[0].metric,
        "scores": [s.model_dump() for s in scores],
        "groups": {},
        "notes": [],
    }
    write_json(folder / "eval" / model / label / "scores.json", body | changes)


def write_eval(folder: Path, methods: tuple[str, ...]) -> None:
    for model in ("seed", *methods):
        task = [score(model, "reasoning_gym", "accuracy", ACCURACY[model], 100, kind="rate")]
        write_scores(folder, model, "reasoning_gym", "task", task)
        drift = [
            score(model, "drift", "reply_words", WORDS[model], 60, kind="mean", better="neither"),
        ]
        if model != "seed":  # both are distances from the seed
            drift = [
                score(model, "drift", "kl", DRIFT[model], 60, kind="mean", better="lower"),
                score(model, "drift", "same_argmax", AGREEMENT[model], 60, kind="mean"),
                *drift,
            ]
        groups = {
            g: {
                **({} if model == "seed" else {"kl": DRIFT[model][0] * (0.5 + 1.1 * i / 7)}),
                "reply_words": WORDS[model][0],
            }
            for i, g in enumerate(GROUPS)
        }
        write_scores(folder, model, "drift", "retention", drift, groups=groups, main="kl")
        rng = random.Random(model)
        words = [max(1, round(rng.gauss(WORDS[model][0], WORDS[model][0] / 2))) for _ in range(60)]
        predictions = (
            Prediction(
                id=f"p{i}", label="", predict="word " * n, finish="stop", tokens=n, verdict=OK, group=GROUPS[i % 8]
            )
            for i, n in enumerate(words)
        )
        write_jsonl(folder / "eval" / model / "drift" / "predictions.jsonl", predictions)
    comparisons = [
        Comparison(
            model=m, baseline=b, benchmark=bench, metric=metric, difference=d, low=lo, high=hi, n=n, p_value=p
        ).model_dump()
        for (m, b, bench, metric), (d, lo, hi, n, p) in DIFFERENCES.items()
        if {m, b} <= {"seed", *methods}
    ]
    write_json(folder / "eval" / "comparisons.json", comparisons)


def write_predictions(folder: Path, label: str, models: tuple[str, ...] = ("seed", "sft", "sdft"), n: int = 40) -> None:
    """Replies to a task's rows: the seed is wrong, vanilla right in one of four, SDFT in every second."""
    step = {"seed": 0, "sft": 4, "sdft": 2}
    for model in models:
        right = [bool(step[model]) and i % step[model] == 0 for i in range(n)]
        predictions = (
            Prediction(
                id=f"r{i}", label=str(i + 1), predict=f"{model} says it is {i + 1 if ok else 'unknown'}.",
                finish="stop", tokens=6, verdict=OK if ok else fail("wrong"), values={"accuracy": float(ok)},
            )
            for i, ok in enumerate(right)
        )  # fmt: skip
        write_jsonl(folder / "eval" / model / label / "predictions.jsonl", predictions)
    asked = (
        Example(id=f"r{i}", messages=(Message(role="user", content=f"What is {i} and 1?"),), reference=str(i + 1))
        for i in range(n)
    )
    write_jsonl(folder / "eval" / "seed" / label / "examples.jsonl", asked)


def load(report_json: str) -> dict[str, Any]:
    """A report.json, read as strictly as other programs do: no NaN."""
    loaded: dict[str, Any] = json.loads(report_json, parse_constant=lambda name: 1 / 0)
    return loaded


def estimate(value: float, half: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


LEVEL = {
    ("seed", "original"): 6.9, ("seed", "distilled"): 0.6, ("sft", "original"): 2.1, ("sft", "distilled"): 3.3,
    ("sdft", "original"): 4.0, ("sdft", "distilled"): 0.3,
}  # fmt: skip
LIKE = {
    "sft": {"similarity": 0.41, "bleu4": 0.03, "rouge_l": 0.12, "bleu4_characters": 0.09, "rouge_l_tokens": 0.17},
    "sdft": {"similarity": 0.88, "bleu4": 0.5, "rouge_l": 0.61, "bleu4_characters": 0.58, "rouge_l_tokens": 0.66},
}


def write_analysis(
    folder: Path, methods: tuple[str, ...] = ("sft", "sdft"), labels: tuple[str, ...] = ("reasoning_gym", "drift")
) -> None:
    """What the stage analyze leaves, over 60 examples and 40 replies to each benchmark."""
    rng = random.Random(0)
    pairs = [(model, variant) for model in ("seed", *methods) for variant in ("original", "distilled")]
    levels = {pair: LEVEL.get(pair, 1.0) for pair in pairs}
    rows = [
        ReplyNll(
            model=model, example_id=f"e{i}", variant="original" if variant == "original" else "distilled",
            text=f"{variant}{i}", tokens=4, nll=4 * max(0.0, rng.gauss(level, 0.8)),
        )
        for (model, variant), level in levels.items()
        for i in range(60)
    ]  # fmt: skip
    write_jsonl(folder / "analyze" / "nll.jsonl", rows)
    fits = [
        {
            "model": model, "variant": variant, "examples": 60, "tokens": 240, "per_token": estimate(level),
            "per_example": estimate(level), "perplexity_per_token": estimate(2.7**level),
            "perplexity_per_example": estimate(2.7**level),
        }
        for (model, variant), level in levels.items()
    ]  # fmt: skip
    nll = {"examples": 60, "rewritten": 42, "replies": fits, "gaps": {"seed": estimate(-6.3)}}
    write_json(folder / "analyze" / "nll.json", nll)
    likes = {method: LIKE.get(method, LIKE["sft"]) for method in methods}
    shifts = [
        Shift(
            model=method, benchmark=label, id=f"p{i}",
            values={name: min(1.0, max(0.0, rng.gauss(mean, 0.1))) for name, mean in like.items()},
        )
        for method, like in likes.items()
        for label in labels
        for i in range(40)
    ]  # fmt: skip
    write_jsonl(folder / "analyze" / "shift.jsonl", shifts)
    replies = [
        {"model": m, "benchmark": label, "rows": 40, "metrics": {name: estimate(v, 0.03) for name, v in like.items()}}
        for m, like in likes.items()
        for label in labels
    ]
    write_json(folder / "analyze" / "shift.json", {"replies": replies})
    layers = [{"layer": i, "norm": 0.4 + 0.02 * i, "relative": 0.012 + 0.001 * i} for i in range(30)]
    changes = {method: {"norm": 3.1, "relative": 0.02, "layers": layers, "modules": []} for method in methods}
    write_json(folder / "analyze" / "weights.json", {"methods": changes})
