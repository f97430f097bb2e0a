"""An engine that runs a program for each prompt: the prompt on its standard input, the reply on its output."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from sdft.engines.base import Continuation, Request, Sampling, TokenLogprobs
from sdft.errors import EngineError, ScoringError
from sdft.models import ModelConfig
from sdft.records import Completion, Settings


class CommandSettings(Settings):
    """A program of your own, such as `[./reply.sh]`, that reads a prompt and writes the reply."""

    name: Literal["command"] = "command"
    argv: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments."""
    seconds: float = Field(default=60.0, gt=0)
    """The longest that one reply may take."""

    def open(self, model: ModelConfig) -> CommandEngine:
        """Look for the program; `model` is not loaded. Raises EngineError."""
        if shutil.which(self.argv[0]) is None:
            raise EngineError(f"engine command: there is no program {self.argv[0]}; set engine.argv")
        return CommandEngine(self)


class CommandEngine:
    """See CommandSettings. Words count as tokens, and `sampling` is the program's own business but for its length."""

    def __init__(self, settings: CommandSettings) -> None:
        self.settings = settings

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one reply for each request, in order; a program that fails gives an error row."""
        for request in requests:
            text, error = self._run(request)
            words = text.split(" ")
            cut = len(words) > sampling.max_new_tokens
            yield Completion(
                id=request.id,
                text=" ".join(words[: sampling.max_new_tokens]),
                finish="error" if error else "length" if cut else "stop",
                prompt_tokens=len(request.prompt.split()),
                tokens=0 if error else min(len(words), sampling.max_new_tokens),
                error=error,
            )

    def _run(self, request: Request) -> tuple[str, str | None]:
        try:
            done = subprocess.run(
                self.settings.argv, input=request.prompt, capture_output=True, text=True, timeout=self.settings.seconds
            )
        except subprocess.TimeoutExpired:
            return "", f"no reply within {self.settings.seconds:g} s"
        if done.returncode:
            return "", f"exit code {done.returncode}: {done.stderr.strip()[:200]}"
        text = done.stdout.removesuffix("\n")
        for stop in request.stop:
            text = text.partition(stop)[0]
        return text, None

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Raises ScoringError: a program gives text alone."""
        raise ScoringError("the engine command gives no probabilities")

    def close(self) -> None:
        """Nothing to free."""
