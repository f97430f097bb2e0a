"""The benchmark `knowledge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from sdft.benchmarks.base import HarnessBenchmark
from sdft.console import Console
from sdft.data.registry import find_file
from sdft.engines import Sampling
from sdft.models import ModelConfig
from sdft.records import Example, Metric, Prediction

KnowledgeTask = Literal[
    "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "arc_easy", "arc_challenge", "hellaswag", "winogrande"
]
FILES: dict[KnowledgeTask, tuple[str, ...]] = {
    "mmlu": ("bench/mmlu/mmlu_test_20x57.jsonl", "bench/mmlu/mmlu_dev_5shot.jsonl"),
    "truthfulqa_mc1": ("bench/truthfulqa/truthfulqa_mc1.jsonl",),
    "truthfulqa_mc2": ("bench/truthfulqa/truthfulqa_mc1.jsonl",),
    "arc_easy": ("bench/arc/arc_easy.jsonl",),
    "arc_challenge": ("bench/arc/arc_challenge.jsonl",),
    "hellaswag": ("bench/hellaswag/hellaswag_2000.jsonl.gz",),
    "winogrande": ("bench/winogrande/winogrande.jsonl",),
}
"""What the tasks in `harness_tasks` read, relative to a folder of SDFT_DATA_DIR."""
GROUPS: dict[str, tuple[KnowledgeTask, ...]] = {
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "ai2_arc": ("arc_easy", "arc_challenge"),
    "arc": ("arc_easy", "arc_challenge"),
}
"""The harness's names for several tasks at once, and `arc`. Its truthfulqa has a task that generates text, too."""
HUB: dict[KnowledgeTask, str] = {
    "mmlu": "cais/mmlu",
    "truthfulqa_mc1": "truthfulqa/truthful_qa",
    "truthfulqa_mc2": "truthfulqa/truthful_qa",
    "arc_easy": "allenai/ai2_arc",
    "arc_challenge": "allenai/ai2_arc",
    "hellaswag": "Rowan/hellaswag",
    "winogrande": "allenai/winogrande",
}
"""What the harness's own tasks read."""


class Knowledge(HarnessBenchmark):
    """`Question: Which gas do plants take in? Answer:` → the likeliest of ` oxygen`, ` carbon dioxide`, ` helium`.

    MMLU, TruthfulQA, ARC, HellaSwag and WinoGrande by EleutherAI's lm-evaluation-harness, on the model with its
    adapter merged. No text is generated: of each question's answers the one with the highest log-likelihood counts.

    - `accuracy`: the share of all questions answered right, whichever task they are from (without truthfulqa_mc2,
      whose values are no rates);
    - one metric a task, the harness's `acc`; `arc` is both ARC tasks together; `…_norm` is its `acc_norm`, which
      divides log-likelihoods by the answers' lengths. `truthfulqa_mc2` is the probability given to true answers;
    - `truthfulqa`: (2 · mc1 + mc2) / 3 of each question, to stand beside the reference's (see below).

    By default without examples before the question and without chat template, as the reference has it: its scripts
    run the harness 0.4 with `--tasks truthfulqa,ai2_arc,hellaswag,winogrande` and read `acc`, and ask MMLU with
    `--n_shot 0`. So of its results for Llama-2-7b-chat, ARC 64.1 is `arc`, HellaSwag 57.8 `hellaswag` (not
    `_norm`), WinoGrande 66.4 `winogrande` and MMLU 46.4 `mmlu`. TruthfulQA 35.3 is `truthfulqa`: the group's mean as
    that release came to it, to judge by its code and the model's published mc1 30.2 and mc2 45.3. The Open LLM
    Leaderboard (v1) had `num_fewshot: {mmlu: 5, arc_challenge: 25, hellaswag: 10, winogrande: 5}`, and read
    arc_challenge_norm, hellaswag_norm and truthfulqa_mc2.

    `source: hub` asks the harness's own tasks, whose data it fetches. `local` reads the files in `FILES` from
    SDFT_DATA_DIR with the same prompts: ARC and WinoGrande whole, 20 questions of each MMLU subject, 813 of
    TruthfulQA's 817 questions, and 2000 other HellaSwag rows without the activity's name. Compare models with one
    another on these, not with published numbers.

    The harness's `results.json` and its log of each question stand in a folder for each task, beside the
    predictions, and one `results.json` of all tasks and their groups above them. A task that has finished is not run
    again.
    """

    METRICS: ClassVar[dict[str, Metric]] = {
        "accuracy": Metric(),
        "mmlu": Metric(),
        "truthfulqa": Metric(kind="mean"),
        "truthfulqa_mc1": Metric(),
        "truthfulqa_mc2": Metric(kind="mean"),
        "arc": Metric(),
        "arc_easy": Metric(),
        "arc_easy_norm": Metric(),
        "arc_challenge": Metric(),
        "arc_challenge_norm": Metric(),
        "hellaswag": Metric(),
        "hellaswag_norm": Metric(),
        "winogrande": Metric(),
    }
    ROLE: ClassVar[Literal["task", "retention"]] = "retention"

    name: Literal["knowledge"] = "knowledge"
    tasks: tuple[KnowledgeTask, ...] = tuple(FILES)
    """The harness's tasks to run; `truthfulqa`, `ai2_arc` and `arc` stand for two each."""
    num_fewshot: dict[KnowledgeTask, int] = {}
    """Answered questions before each question, by task or group; 0 where a task is not named."""
    source: Literal["auto", "hub", "local"] = Field(default="auto", validate_default=True)
    """`auto` becomes `local` where SDFT_DATA_DIR has all that is asked for, else `hub`; a run keeps to it."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many questions of each of the harness's tasks, as its `--limit`; each MMLU subject is a task."""
    apply_chat_template: bool = False
    """Put the prompt into the model's chat template, examples as turns."""
    batch_size: int = Field(default=8, ge=1)
    """Questions' answers computed at once."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _expand_groups(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(
            task for name in value for task in (GROUPS.get(name, (name,)) if isinstance(name, str) else (name,))
        )

    @field_validator("num_fewshot", mode="before")
    @classmethod
    def _expand_group_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {task: shots for name, shots in value.items() for task in GROUPS.get(name, (name,))}

    @field_validator("tasks")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one task")
        for task in sorted({task for task in value if value.count(task) > 1}):
            raise ValueError(f"task '{task}' is named twice")
        return value

    @field_validator("num_fewshot")
    @classmethod
    def _shots(cls, value: dict[str, int]) -> dict[str, int]:
        for task, shots in value.items():
            if task.startswith("truthfulqa"):
                raise ValueError(f"{task} has its six examples in the prompt and takes no others")
            if shots < 0:
                raise ValueError(f"{task}: {shots} is no number of examples")
        return value

    @field_validator("source")
    @classmethod
    def _found(cls, value: str, info: ValidationInfo) -> str:
        if value == "auto" and {"tasks", "num_fewshot"} <= set(info.data):
            return "hub" if _lacks_here(info.data["tasks"], info.data["num_fewshot"]) else "local"
        return value

    def examples(self) -> list[Example]:
        """The questions; `reference` is the right answer. Raises BenchmarkError and DataError."""
        from sdft.benchmarks._harness import examples

        return examples(self)

    def measure(self, model: ModelConfig, folder: Path, console: Console) -> list[Prediction]:
        """Every question's answer; see HarnessBenchmark."""
        from sdft.benchmarks._harness import measure

        return measure(self, model, folder, console)

    def forecast(self, models: int, sampling: Sampling) -> str | None:
        """Whose data the hub will be asked for, if any. Asks nothing itself."""
        if self.source != "hub":
            return None
        names = ", ".join(dict.fromkeys(HUB[task] for task in self.tasks))
        return f"its data comes from the hub: {names}; to do without, put the files of source=local into SDFT_DATA_DIR"

    def missing(self) -> Iterator[str]:
        """The harness, and the files where `source: local` wants them."""
        if find_spec("lm_eval") is None:
            yield "the package lm-eval is not installed: pip install lm-eval"
        if self.source == "local":
            yield from _lacks_here(self.tasks, self.num_fewshot)


def _lacks_here(tasks: Sequence[KnowledgeTask], num_fewshot: Mapping[KnowledgeTask, int]) -> list[str]:
    """What stands in the way of `source: local`."""
    problems = []
    absent = dict.fromkeys(file for task in tasks for file in FILES[task] if find_file(file) is None)
    if absent:
        problems.append(f"{', '.join(absent)}: in no folder of SDFT_DATA_DIR; put them there, or set source=hub")
    for task in tasks:
        if num_fewshot.get(task, 0) > (5 if task == "mmlu" else 0):
            have = "five examples a subject" if task == "mmlu" else "no examples"
            problems.append(f"num_fewshot.{task}: the local files have {have}; ask for no more, or set source=hub")
    return problems
