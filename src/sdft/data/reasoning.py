"""The dataset `reasoning_gym`: made rather than read."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sdft.errors import DataError, did_you_mean
from sdft.records import Example, Message, Settings

MISSING = "reasoning_gym: the package is not installed; pip install reasoning-gym"


class SeedRange(Settings):
    """The rows that another dataset of the same task draws."""

    seed: int
    size: int = Field(ge=1)


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, dict) else value


class ReasoningGymOptions(Settings):
    """Short questions with exact answers from the package reasoning-gym.

        {"question": "State the final answer to the following arithmetic problem: 54 - 91 =", "answer": "-37"}

    Row i is drawn with seed + i, so two datasets whose seeds lie further apart than their sizes share no draw.
    A small task may still ask the same question twice: `unique` and `exclude` leave such rows out.
    """

    task: str
    """One of the package's tasks, such as `chain_sum`."""
    size: int = Field(ge=1)
    """Rows drawn. Rows that `unique` or `exclude` leave out are not made up for: draw some more, and set
    `limit` where an exact number is wanted."""
    seed: int = Field(default=0, ge=0)
    config: dict[str, Any] = {}
    """The task's own settings, such as `min_terms: 2`."""
    unique: bool = False
    """Keep only the first row of those that ask the same question."""
    exclude: Annotated[tuple[SeedRange, ...], BeforeValidator(_listed)] = ()
    """Leave out questions that these draws of the same task ask: one `{seed, size}`, or a list of them."""


def missing_reasoning_gym() -> str | None:
    """How to install the package, or None where it is there."""
    return None if importlib.util.find_spec("reasoning_gym") else MISSING


def reasoning_gym_examples(options: ReasoningGymOptions) -> Iterator[Example]:
    """Draw examples; ids such as `chain_sum-1017` name the task and the seed of the row.

    `meta["entry"]` is the task's own metadata, as its scorer wants it. The package takes about two seconds to
    import. Raises DataError for an unknown task or setting.
    """
    taken = {question for other in options.exclude for question, _, _ in _draw(options, other.seed, other.size)}
    for number, (question, answer, entry) in enumerate(_draw(options, options.seed, options.size)):
        if question in taken:
            continue
        if options.unique:
            taken.add(question)
        yield Example(
            id=f"{options.task}-{options.seed + number}",
            messages=(Message(role="user", content=question),),
            reference=answer,
            meta={"row": {"question": question, "answer": answer}, "reply_column": "answer", "entry": entry},
        )


def _draw(options: ReasoningGymOptions, seed: int, size: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Questions, answers and metadata in JSON's own types, so that they are the same when read from a file."""
    dataset = _task(options, seed, size)
    for index in range(size):
        entry = dataset[index]
        metadata: dict[str, Any] = json.loads(json.dumps(entry["metadata"], default=str))
        yield str(entry["question"]), str(entry["answer"]), metadata


def _task(options: ReasoningGymOptions, seed: int, size: int) -> Any:
    where = f"reasoning_gym: task '{options.task}'"
    try:
        with warnings.catch_warnings():  # of a package that it imports
            warnings.simplefilter("ignore", SyntaxWarning)
            from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise DataError(f"{MISSING} ({error})") from None
    if options.task not in DATASETS:
        raise DataError(f"reasoning_gym: no task '{options.task}'{did_you_mean(options.task, sorted(DATASETS))}")
    known = {item.name for item in dataclasses.fields(DATASETS[options.task][1])} - {"seed", "size"}
    for key in options.config:
        if key not in known:
            raise DataError(f"{where} has no setting '{key}'{did_you_mean(key, sorted(known))}")
    try:
        return create_dataset(options.task, seed=seed, size=size, **options.config)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"{where} refuses its settings: {error}") from None
