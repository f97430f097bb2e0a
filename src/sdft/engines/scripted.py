"""An engine with fixed replies, latency and faults: for tests and dry runs. It needs no model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from sdft.engines.base import Continuation, Request, Sampling, TokenLogprobs
from sdft.errors import EngineError
from sdft.models import ModelConfig
from sdft.records import Completion, Settings
from sdft.rundir import seed_for


class ScriptedSettings(Settings):
    """Replies by rule: the first key of `replies` found in the prompt picks the reply, else `default`.

    `{seed}` in a reply is replaced by the request's seed, so that replies differ by example and candidate.
    """

    name: Literal["scripted"] = "scripted"
    replies: dict[str, str] = {}
    """Text found in the prompt → reply."""
    default: str = "A scripted reply ({seed})."
    latency: float = Field(default=0.0, ge=0)
    """Seconds that each reply takes."""
    fail_every: int | None = Field(default=None, ge=1)
    """Every n-th reply is an error row."""
    truncate_every: int | None = Field(default=None, ge=1)
    """Every n-th reply is cut at the token limit."""
    die_after: int | None = Field(default=None, ge=0)
    """The engine as a whole fails after this many replies."""

    def open(self, model: ModelConfig) -> ScriptedEngine:
        """Start the engine; `model` is not loaded."""
        return ScriptedEngine(self)


class ScriptedEngine:
    """See ScriptedSettings. Words count as tokens. Replies finish in the order asked."""

    def __init__(self, settings: ScriptedSettings) -> None:
        self.settings = settings

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one scripted completion for each request."""
        s = self.settings
        for count, request in enumerate(requests, 1):
            if s.die_after is not None and count > s.die_after:
                raise EngineError(f"scripted engine: died after {s.die_after} replies, as its settings say")
            if s.latency:
                time.sleep(s.latency)
            yield self._reply(count, request, sampling)

    def _reply(self, count: int, request: Request, sampling: Sampling) -> Completion:
        s = self.settings
        prompt_tokens = len(request.prompt.split())
        if s.fail_every and count % s.fail_every == 0:
            return Completion(
                id=request.id, text="", finish="error", prompt_tokens=prompt_tokens, tokens=0, error="scripted fault"
            )
        text = next((reply for key, reply in s.replies.items() if key in request.prompt), s.default)
        words = text.replace("{seed}", str(request.seed % 10_000)).split(" ")
        cut = bool(s.truncate_every and count % s.truncate_every == 0) or len(words) > sampling.max_new_tokens
        if cut:
            words = words[: max(1, min(sampling.max_new_tokens, len(words) - 1))]
        return Completion(
            id=request.id,
            text=" ".join(words),
            finish="length" if cut else "stop",
            prompt_tokens=prompt_tokens,
            tokens=len(words),
        )

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield made-up but stable log-probabilities, one for each word of the reply."""
        for item in items:
            words = item.reply.split()
            seeds = [seed_for(item.prompt, word) for word in words]
            yield TokenLogprobs(
                id=item.id,
                tokens=tuple(seed % 50_000 for seed in seeds),
                logprobs=tuple(-(seed % 1000) / 100 for seed in seeds),
            )

    def close(self) -> None:
        """Nothing to free."""
