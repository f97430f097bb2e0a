"""The one seam between stages and whatever generates text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pydantic import Field

from sdft.records import Completion, Message, Settings

if TYPE_CHECKING:
    import torch


class Sampling(Settings):
    """How replies are decoded. The defaults are greedy."""

    temperature: float = Field(default=0.0, ge=0)
    """0 decodes greedily; `top_p` and `top_k` then have no effect."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens before `top_p`; 0 keeps all."""
    max_new_tokens: int = Field(default=512, ge=1)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued."""

    id: str
    prompt: str
    """The whole text that the model continues, special tokens written out."""
    seed: int = 0
    """Seeds this request's own sampling, so that its reply does not depend on its neighbours."""
    stop: tuple[str, ...] = ()
    """Strings that end the reply; they are not part of it."""
    prefix: str = ""
    """The leading part of the prompt that many requests share, such as the system text; an engine may compute
    it once. It must not depend on the request, so that the reply does not depend on which others are asked."""
    messages: tuple[Message, ...] | None = None
    """The same prompt as turns, for servers that apply the chat template themselves."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt with a given reply, to be scored rather than generated."""

    id: str
    prompt: str
    reply: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural log) of a given reply's tokens under a model."""

    id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@runtime_checkable
class Engine(Protocol):
    """Generates and scores text with one model. Not thread-safe."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion for each request, in whatever order they finish.

        A request that fails is a completion with finish "error", not an exception. Raises EngineError
        where the engine as a whole cannot go on.
        """
        ...

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield the log-probabilities of each reply's tokens, given its prompt, in order.

        Raises ScoringError where it can give none, or none of one text; EngineError where it cannot go on.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


@runtime_checkable
class DistributionEngine(Engine, Protocol):
    """An engine that also gives whole next-token distributions, as `drift` needs."""

    def distributions(self, items: Iterable[Continuation]) -> Iterator[torch.Tensor]:
        """Yield log-probabilities, float32 of shape (reply tokens, vocabulary), for each item in order."""
        ...


@runtime_checkable
class NotedEngine(Engine, Protocol):
    """An engine that has something to say of how it went."""

    def notes(self) -> list[str]:
        """What a person should know of it, a line each."""
        ...
