"""EleutherAI's lm-evaluation-harness on one of our models. See `knowledge`."""

from __future__ import annotations

import gc
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval
import lm_eval.api.task
import lm_eval.tasks
import torch
import transformers
from lm_eval.api.group import Group
from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr
from lm_eval.config.group import AggMetricConfig
from lm_eval.evaluator import evaluate
from lm_eval.loggers.utils import add_tokenizer_info
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable

from sdft.benchmarks.harness_tasks import local
from sdft.benchmarks.knowledge import GROUPS
from sdft.checks import PASS
from sdft.console import Console
from sdft.errors import BenchmarkError, DataError, EngineError
from sdft.models import ModelConfig, load_model, load_tokenizer
from sdft.records import Example, Message, Prediction, Verdict
from sdft.rundir import atomic_write, read_json, read_jsonl, write_json, write_jsonl

if TYPE_CHECKING:
    from sdft.benchmarks.knowledge import Knowledge, KnowledgeTask

OURS = Path(local.__file__).parent
THEIRS = ("mmlu/default", "truthfulqa", "arc", "hellaswag", "winogrande")
"""Folders of the harness with the tasks that are asked for: to index all its tasks takes a quarter of a minute."""
FEWSHOT_SEED = 1234
"""The harness's own default."""
WRONG = Verdict(ok=False, reason="wrong_choice")


class _Model(HFLM):  # type: ignore[misc]
    """The harness's view of a loaded model, with progress on our console and a count of what it cuts."""

    def __init__(self, config: ModelConfig, batch_size: int, console: Console) -> None:
        super().__init__(
            pretrained=load_model(config),
            tokenizer=load_tokenizer(config),
            batch_size=batch_size,
            softmax_dtype=torch.float32,  # sums of log-probabilities in bfloat16 would be rounded to a quarter nat
        )
        self.console = console
        self.title = ""
        self.cut = 0

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> Any:
        """Requests are (texts, context tokens, continuation tokens)."""
        self.cut += sum(len(context) + len(reply) > self.max_length + 1 for _, context, reply in requests)
        with self.console.task(self.title, total=len(requests), unit="answers") as bar:
            self.cache_hook = _Counter(bar.advance)
            return super()._loglikelihood_tokens(requests, disable_tqdm=True)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As the harness's, without its bars."""
        return super().loglikelihood(requests, disable_tqdm=True)


class _Counter:
    """What the harness tells of each finished request."""

    def __init__(self, advance: Any) -> None:
        self.advance = advance

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.advance()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the terminal free of the bars of the harness, which has no switch for them, and of its warnings."""
    logger, bars, silent = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm, datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = partial(bars, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bars
        if not silent:
            datasets.enable_progress_bars()


def measure(settings: Knowledge, model: ModelConfig, folder: Path, console: Console) -> list[Prediction]:
    """Run the tasks that `folder` holds no predictions of, and give those of all."""
    predictions: list[Prediction] = []
    lm: _Model | None = None
    try:
        for task in settings.tasks:
            kept = folder / task / "predictions.jsonl"
            if not kept.exists():
                with _quiet():
                    lm = lm or _Model(model, settings.batch_size, console)
                    _run(settings, task, lm, model, kept.parent)
            predictions += read_jsonl(kept, Prediction)
        _merge(settings.tasks, folder)
    except torch.OutOfMemoryError:
        raise EngineError(
            f"{settings.name}: the device is out of memory at batch_size={settings.batch_size}; lower the benchmark's "
            "batch_size and run the same command again: finished tasks are kept"
        ) from None
    finally:
        del lm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return _with_truthfulqa(predictions)


def _with_truthfulqa(predictions: Sequence[Prediction]) -> list[Prediction]:
    """`truthfulqa` on the mc1 row of each question that mc2 was asked, too, so that a question counts once."""
    second = {p.id: p.values["truthfulqa_mc2"] for p in predictions if "truthfulqa_mc2" in p.values}
    found = []
    for prediction in predictions:
        mc1, mc2 = prediction.values.get("truthfulqa_mc1"), second.get(prediction.id.replace("_mc1", "_mc2", 1))
        if mc1 is not None and mc2 is not None:
            values = {**prediction.values, "truthfulqa": (2 * mc1 + mc2) / 3}
            prediction = prediction.model_copy(update={"values": values})
        found.append(prediction)
    return found


def _merge(tasks: Sequence[KnowledgeTask], folder: Path) -> None:
    """Write `results.json` of all tasks in the harness's form, with the groups of tasks that were run one by one."""
    merged: dict[str, Any] = {}
    cut = 0
    for task in tasks:
        results = read_json(folder / task / "results.json")
        cut += results["config"]["requests_cut_at_max_length"]
        for key, value in results.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    merged["config"]["requests_cut_at_max_length"] = cut
    for group, weights in (("ai2_arc", None), ("truthfulqa", (2, 1))):
        names = [name for name in merged["results"] if name.removesuffix("_local") in GROUPS[group]]
        if len(names) == len(GROUPS[group]):
            _add_group(merged, group + ("_local" if names[0].endswith("_local") else ""), names, weights)
    write_json(folder / "results.json", merged)


def _add_group(merged: dict[str, Any], group: str, names: Sequence[str], weights: Sequence[int] | None) -> None:
    """The means over a group's tasks, by their sizes or by `weights`, for which there is no standard error."""
    parts = [merged["results"][name] for name in names]
    sizes = [merged["n-samples"][name]["effective"] for name in names]
    entry: dict[str, Any] = {"alias": group, "name": group, "sample_len": sum(sizes)}
    for metric in ("acc", "acc_norm"):
        if not all(f"{metric},none" in part for part in parts):
            continue
        entry[f"{metric},none"] = aggregate_subtask_metrics(
            [part[f"{metric},none"] for part in parts], weights or sizes
        )
        errors = [part.get(f"{metric}_stderr,none") for part in parts]
        known = weights is None and all(isinstance(error, float) for error in errors)
        entry[f"{metric}_stderr,none"] = float(pooled_sample_stderr(errors, sizes)) if known else "N/A"
    for key in ("results", "groups"):
        merged[key] = {**merged.get(key, {}), group: entry}
    merged["group_subtasks"] = {**merged.get("group_subtasks", {}), group: list(names)}


def _run(settings: Knowledge, task: KnowledgeTask, lm: _Model, model: ModelConfig, folder: Path) -> None:
    """Write a task's files; `predictions.jsonl` comes last and marks it as finished."""
    lm.title, lm.cut = f"{folder.parent.parent.name} on {folder.parent.name}: {task}", 0
    tasks = _load(settings, task)
    results = evaluate(
        lm=lm,
        task_dict=tasks,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        fewshot_as_multiturn=True,
    )
    samples: dict[str, list[dict[str, Any]]] = results.pop("samples")
    for name, rows in samples.items():
        with atomic_write(folder / f"samples_{name}.jsonl") as file:
            file.writelines(_dump(row, None) + "\n" for row in rows)
    add_tokenizer_info(results, lm)
    results |= {
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model.name, "revision": model.revision, "peft": model.adapter},
            "model_dtype": str(lm.model.dtype),
            "batch_size": settings.batch_size,
            "device": str(lm.device),
            "limit": settings.limit,
            "fewshot_seed": FEWSHOT_SEED,
            "apply_chat_template": settings.apply_chat_template,
            "requests_cut_at_max_length": lm.cut,
        },
        "date": time.time(),
        "lm_eval_version": lm_eval.__version__,
        "transformers_version": transformers.__version__,
    }
    write_json(folder / "results.json", json.loads(_dump(results, 2)))
    write_jsonl(
        folder / "predictions.jsonl",
        [_prediction(task, tasks["tasks"][name], name, row) for name, rows in samples.items() for row in rows],
    )


def _dump(value: Any, indent: int | None) -> str:
    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)


def examples(settings: Knowledge) -> list[Example]:
    """The questions of all tasks, in the order in which `measure` gives their predictions."""
    found = []
    with _quiet():
        for task in settings.tasks:
            for name, item in _load(settings, task)["tasks"].items():
                for index, doc in item.doc_iterator(limit=settings.limit):
                    choices, gold = _choices(item, doc)
                    text = " / ".join(choices) if item.multiple_input else item.doc_to_text(doc)
                    found.append(
                        Example(
                            id=f"{name}-{index}",
                            messages=(Message(role="user", content=text),),
                            reference=choices[gold],
                            meta={"task": task},
                        )
                    )
    return found


def _load(settings: Knowledge, task: KnowledgeTask) -> Any:
    """The harness's task objects: `{"tasks": {name: task}, …}`. Raises BenchmarkError and DataError."""
    wanted: Sequence[Any] = [task]
    folders = [OURS]
    if settings.source != "local":
        folders = [Path(lm_eval.tasks.__file__).parent / part for part in THEIRS]
    elif task == "mmlu":
        wanted = _mmlu_subjects()
    else:
        wanted = [f"{task}_local"]
    try:
        manager = TaskManager(include_path=folders, include_defaults=False)
        loaded = manager.load(wanted)
        if isinstance(wanted[0], dict):
            loaded = manager.load([_grouped(f"{task}_local", loaded["tasks"])])
    except DataError:
        raise
    except Exception as error:  # whatever goes wrong in there, the user's way out is the same
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise BenchmarkError(
            f"{settings.name}: the harness cannot load the task {task} ({what[0]}); its data comes from the hub: fetch "
            "it once where the hub can be reached, or put the files of source=local into SDFT_DATA_DIR"
        ) from None
    shots = settings.num_fewshot.get(task, 0)
    for item in loaded["tasks"].values():
        item.set_config(key="num_fewshot", value=shots)
        item.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _mmlu_subjects() -> list[dict[str, Any]]:
    """One task for each subject, so that its examples are of its own subject, and `limit` is spread over all."""
    whole = load_yaml(OURS / "mmlu_local.yaml")
    files = whole["dataset_kwargs"]
    return [
        {**whole, "task": f"mmlu_{subject}_local", "dataset_kwargs": {**files, "subject": subject}}
        for subject in local.subjects(files["file"])
    ]


def _grouped(name: str, tasks: Mapping[str, Any]) -> Any:
    """A group of tasks whose accuracy is the mean by their sizes, as that of the harness's own group `mmlu`."""
    group = Group(name, aggregate_metric_list=[AggMetricConfig("acc", weight_by_size=True)])
    for item in tasks.values():
        group.add(item)
    return group


def _choices(item: Any, doc: dict[str, Any]) -> tuple[list[str], int]:
    """The answers that are offered, and which of them is right; of several, the first."""
    choices: list[str] = item.doc_to_choice(doc)
    gold = item.doc_to_text(doc) if item.multiple_input else item.doc_to_target(doc)
    return choices, choices.index(gold) if isinstance(gold, str) else int(gold)


def _prediction(task: KnowledgeTask, item: Any, name: str, row: dict[str, Any]) -> Prediction:
    """A line of the harness's log as ours."""
    choices, gold = _choices(item, row["doc"])
    likelihoods = [likelihood for likelihood, _ in row["filtered_resps"]]
    value = float(row["acc"])
    values: dict[str, float] = {task: value}
    if task != "truthfulqa_mc2":
        values["accuracy"] = value
    if "acc_norm" in row:
        values[f"{task}_norm"] = float(row["acc_norm"])
    if task.startswith("arc"):
        values["arc"] = value
    if not math.isfinite(value):  # truthfulqa_mc2, where every answer's probability rounds to zero
        values, verdict = {}, Verdict(ok=False, reason="underflow")
    else:
        verdict = PASS if value > 0.5 else WRONG
    return Prediction(
        id=f"{name}-{row['doc_id']}",
        label=choices[gold],
        predict=choices[likelihoods.index(max(likelihoods))],
        finish="stop",
        tokens=0,
        verdict=verdict,
        values=values,
        group=name.removesuffix("_local"),
    )
