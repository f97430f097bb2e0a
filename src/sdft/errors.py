"""Every error that is the user's to mend.

    SdftError              base; the command line prints it on one line and exits 2
    ├── RecipeError        a recipe that cannot be run: unknown key, wrong type, missing base file
    ├── DataError          a dataset that cannot be read, or rows in it that are not examples
    ├── PromptError        a prompt that cannot be rendered: no template, missing variable, too long
    ├── ModelError         a model that cannot be loaded, or does not fit its adapter or tokenizer
    ├── EngineError        a generation engine that cannot start or go on
    ├── BenchmarkError     a benchmark whose data or package is missing
    └── RunError           a run folder that is locked, belongs to another recipe, or cannot be written

Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class SdftError(Exception):
    """Base of all errors that say what is wrong, where, and what to do."""


class RecipeError(SdftError):
    """The recipe is wrong. `problems` lists every one that was found, not only the first."""

    def __init__(self, message: str, problems: tuple[str, ...] = (), sound: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.problems = problems
        self.sound = sound or {}
        """Sections that are in order by themselves, as settings, so that what they name can still be looked for."""

    @classmethod
    def of(cls, where: str, problems: Sequence[str], sound: Mapping[str, Any] | None = None) -> RecipeError:
        """One error for all problems, a line each."""
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        return cls(f"{where}: {count}\n" + "\n".join(f"  - {p}" for p in problems), tuple(problems), sound)


class DataError(SdftError):
    """A dataset, or rows of it, cannot be used."""


class PromptError(SdftError):
    """A prompt cannot be rendered."""


class ModelError(SdftError):
    """A model, tokenizer or adapter cannot be loaded."""


class EngineError(SdftError):
    """A generation engine cannot start or go on."""


class ScoringError(EngineError):
    """An engine or server gives no likelihoods, or not of this text."""


class BenchmarkError(SdftError):
    """A benchmark cannot run: data, package or setting is missing."""


class RunError(SdftError):
    """A run folder cannot be used as asked."""


LONG_ENOUGH = 4
"""Letters of a word that may be a part of what is meant."""


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1,000 replies`."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def suggestion(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'x'?` for names that are close or hold the word; empty where none does."""
    names = list(options)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close and len(word) >= LONG_ENOUGH:
        close = [name for name in names if word in name][:3]
    if close:
        return f"; did you mean {' or '.join(repr(name) for name in close)}?"
    return ""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """As `suggestion`; where none is close all options, in their order, if there are any."""
    names = list(options)
    return suggestion(word, names) or (f"; there are: {', '.join(names)}" if names else "")
