"""Read a run folder. A part that is missing or cannot be read is a line in `missing`, not an error."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from sdft.errors import RunError
from sdft.records import Choice, Comparison, Example, Prediction, ReplyNll, Shift
from sdft.report.parts import (
    Manifest,
    ModelScores,
    Nll,
    Part,
    ReplyShift,
    Selection,
    Shifts,
    Training,
    WeightChange,
    WeightChanges,
)
from sdft.rundir import read_json, read_jsonl, seed_for

SEED = "seed"
"""The folder name of the untuned model under `eval/`."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One row of the sample of rewrites."""

    choice: Choice
    instruction: str | None
    """The user's last turn, where `data/train.jsonl` has it."""


@dataclass(slots=True)
class Run:
    """All that a report is made from."""

    folder: Path
    manifest: Manifest = field(default_factory=Manifest)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    selection: Selection | None = None
    refused: dict[str, int] = field(default_factory=dict)
    """Reason to examples that kept their original, commonest first."""
    picks: list[Pick] = field(default_factory=list)
    training: dict[str, Training] = field(default_factory=dict)
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Method to (optimizer step, loss)."""
    scores: list[ModelScores] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    reply_words: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Drift benchmark's label to model to the words of each of its replies."""
    group_rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Drift benchmark's label to group to rows."""
    nll: Nll | None = None
    nll_values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """(Model, variant) to each reply's mean NLL per token."""
    shifts: tuple[ReplyShift, ...] = ()
    shift_values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    """(Benchmark, metric, model) to each reply's value."""
    weights: dict[str, WeightChange] = field(default_factory=dict)
    """By method."""
    missing: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """The methods that the recipe names, then others that left files."""
        named = [m for m in self.recipe.get("methods") or [] if isinstance(m, str)]
        found = [*self.training, *(s.model for s in self.scores if s.model != SEED)]
        return list(dict.fromkeys([*named, *sorted(found)]))


P = TypeVar("P", bound=Part)


def read_run(folder: Path, sample: int = 20) -> Run:
    """Read everything the report shows, with `sample` rewrites. Raises RunError where there is no such folder."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; `sdft run RECIPE` makes one")
    run = Run(folder)
    run.manifest = _read(run, "manifest.json", Manifest) or Manifest()
    _read_recipe(run)
    _read_selection(run, sample)
    _read_training(run)
    _read_scores(run)
    _read_analyses(run)
    return run


def _read(run: Run, name: str, part: type[P]) -> P | None:
    """One JSON file, or None and a line in `missing`."""
    try:
        return part.model_validate(read_json(run.folder / name))
    except RunError as error:
        why = "is not there" if not (run.folder / name).exists() else str(error).removeprefix(f"{run.folder}/")
        run.missing.append(f"{name} {why}" if why == "is not there" else why)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        run.missing.append(f"{name} does not have the expected form ({key}: {first['msg']})")
    return None


def _read_recipe(run: Run) -> None:
    run.recipe = run.manifest.recipe
    path = run.folder / "recipe.yaml"
    try:
        run.recipe_text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(run.recipe_text)
        run.recipe = run.recipe or (tree if isinstance(tree, dict) else {})
    except FileNotFoundError:
        if run.recipe:
            run.recipe_text = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        else:
            run.missing.append("recipe.yaml is not there")
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.missing.append(f"recipe.yaml cannot be read ({error})")


def _read_selection(run: Run, sample: int) -> None:
    path = run.folder / "select" / "choices.jsonl"
    if not path.exists() and "sdft" not in run.recipe.get("methods", ["sdft"]):
        return  # no method of this run needs rewrites
    run.selection = _read(run, "select/summary.json", Selection)
    if run.selection is not None:
        passed = {"ok", "identical"}
        run.refused = {reason: n for reason, n in run.selection.reasons.items() if reason not in passed}
    if not path.exists():
        run.missing.append("select/choices.jsonl is not there")
        return
    refused: Counter[str] = Counter()
    kinds: dict[str, list[tuple[int, int, Choice]]] = defaultdict(list)
    try:
        for number, choice in enumerate(read_jsonl(path, Choice)):
            kind = _kind(choice)
            if choice.source == "original":
                refused[choice.verdict.reason] += 1
            # The rows with the smallest hashes: the same ones each time, spread over the dataset.
            row = (-seed_for("report", choice.example_id), -number, choice)
            if len(kinds[kind]) < sample:
                heapq.heappush(kinds[kind], row)
            else:
                heapq.heappushpop(kinds[kind], row)
    except RunError as error:
        run.missing.append(str(error))
    run.refused = dict(refused.most_common()) or run.refused
    chosen = _varied({kind: [c for *_, c in sorted(rows, reverse=True)] for kind, rows in kinds.items()}, sample)
    instructions = _instructions(run, {c.example_id for c in chosen})
    run.picks = [Pick(choice, instructions.get(choice.example_id)) for choice in chosen]


def _kind(choice: Choice) -> str:
    """What a row is an instance of: rows of every kind are to be seen."""
    if choice.source == "original":
        return f"refused {choice.verdict.reason}"
    if choice.response.strip() == choice.original.strip():
        return "identical"
    return "accepted" if not choice.candidate else "accepted later"


def _varied(kinds: dict[str, list[Choice]], sample: int) -> list[Choice]:
    """About half accepted, the rest refused, one reason after the other; in the end accepted ones come first."""
    accepted = [kind for kind in ("accepted", "accepted later", "identical") if kind in kinds]
    refused = sorted(kind for kind in kinds if kind not in accepted)
    first = list(_in_turn([kinds[kind] for kind in accepted]))
    second = list(_in_turn([kinds[kind] for kind in refused]))
    taken = min(len(first), max(sample // 2, sample - len(second)))
    chosen = first[:taken] + second[: sample - taken]
    order = {kind: place for place, kind in enumerate([*accepted, *refused])}
    return sorted(chosen, key=lambda choice: order[_kind(choice)])


def _in_turn(lists: list[list[Choice]]) -> Iterator[Choice]:
    for index in range(max((len(rows) for rows in lists), default=0)):
        for rows in lists:
            if index < len(rows):
                yield rows[index]


def _instructions(run: Run, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for example in read_jsonl(run.folder / "data" / "train.jsonl", Example):
            if example.id in wanted:
                found[example.id] = example.instruction
                if len(found) == len(wanted):
                    break
    except RunError as error:
        run.missing.append(str(error).removeprefix(f"{run.folder}/"))
    return found


def _read_training(run: Run) -> None:
    there = {path.name for path in (run.folder / "train").glob("*") if path.is_dir()}
    if not there:
        run.missing.append("train: nothing has been trained yet")
        return
    for method in dict.fromkeys([*run.methods, *sorted(there)]):
        training = _read(run, f"train/{method}/training.json", Training)
        if training is not None:
            run.training[method] = training
        path = run.folder / "train" / method / "trainer_state.json"
        if not path.exists():
            continue
        try:
            run.losses[method] = list(_losses(read_json(path)))
        except (RunError, TypeError, KeyError, AttributeError, ValueError) as error:
            run.missing.append(f"train/{method}/trainer_state.json cannot be read ({error})")


def _losses(state: Any) -> Iterator[tuple[int, float]]:
    for entry in state["log_history"]:
        if "loss" in entry and math.isfinite(float(entry["loss"])):
            yield int(entry["step"]), float(entry["loss"])


def _read_scores(run: Run) -> None:
    evaluated = run.folder / "eval"
    for path in sorted(evaluated.glob("*/*/scores.json")):
        scores = _read(run, path.relative_to(run.folder).as_posix(), ModelScores)
        if scores is not None:
            run.scores.append(scores)
    asked = (run.recipe.get("evaluate") or {}).get("benchmarks") or []
    labels = [label for label in map(_label, asked) if label]
    place = {label: index for index, label in enumerate(labels)}
    run.scores.sort(key=lambda s: (s.role != "task", place.get(s.label, len(place)), s.label))
    if not run.scores:
        why = "nothing has been evaluated yet" if labels else "the recipe asks for no benchmark"
        run.missing.append(f"eval: {why}, so there is no scoreboard")
        return
    have = {(s.model, s.label) for s in run.scores}
    expected = [(m, label) for label in labels for m in [SEED, *run.methods]]
    run.missing += [f"eval/{m}/{label} has no scores" for m, label in expected if (m, label) not in have]
    _read_comparisons(run)
    _read_drift(run)


def _label(benchmark: Any) -> str | None:
    if isinstance(benchmark, dict):
        benchmark = benchmark.get("label") or benchmark.get("name")
    return benchmark if isinstance(benchmark, str) else None


def _read_comparisons(run: Run) -> None:
    path = run.folder / "eval" / "comparisons.json"
    if not path.exists():
        run.missing.append("eval/comparisons.json is not there: differences have no intervals, so none is claimed")
        return
    try:
        run.comparisons = TypeAdapter(list[Comparison]).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        run.missing.append(f"eval/comparisons.json cannot be read ({str(error).splitlines()[0]})")


def _read_drift(run: Run) -> None:
    """Reply lengths and group sizes, from the predictions of the drift benchmarks alone."""
    for scores in run.scores:
        if scores.benchmark != "drift":
            continue
        path = run.folder / "eval" / scores.model / scores.label / "predictions.jsonl"
        if not path.exists():
            continue
        words: list[int] = []
        groups: Counter[str] = Counter()
        try:
            for prediction in read_jsonl(path, Prediction):
                if prediction.finish == "error":
                    continue  # no reply
                words.append(len(prediction.predict.split()))
                if prediction.group is not None:
                    groups[prediction.group] += 1
        except RunError as error:
            run.missing.append(str(error).removeprefix(f"{run.folder}/"))
        if words:
            run.reply_words.setdefault(scores.label, {})[scores.model] = words
            run.group_rows[scores.label] = dict(groups)


def _read_analyses(run: Run) -> None:
    """What `analyze/` holds; what was not measured is said in the run's notes."""

    def there(name: str) -> bool:
        return (run.folder / "analyze" / name).exists()

    if there("nll.json"):
        run.nll = _read(run, "analyze/nll.json", Nll)
    if there("shift.json"):
        shifts = _read(run, "analyze/shift.json", Shifts)
        run.shifts = tuple(shift for shift in shifts.replies if shift.metrics) if shifts else ()
    if there("weights.json"):
        weights = _read(run, "analyze/weights.json", WeightChanges)
        run.weights = dict(weights.methods) if weights else {}
    try:
        for row in read_jsonl(run.folder / "analyze/nll.jsonl", ReplyNll) if run.nll else ():
            if row.tokens and math.isfinite(row.nll):
                run.nll_values.setdefault((row.model, row.variant), []).append(row.nll / row.tokens)
        for shift in read_jsonl(run.folder / "analyze/shift.jsonl", Shift) if run.shifts else ():
            for metric, value in shift.values.items():
                if math.isfinite(value):
                    run.shift_values.setdefault((shift.benchmark, metric, shift.model), []).append(value)
    except RunError as error:
        run.missing.append(str(error).removeprefix(f"{run.folder}/"))
