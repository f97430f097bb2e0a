"""Generate on an OpenAI-compatible server: vLLM, SGLang, llama.cpp, TGI, or a hosted one.

    engine: {name: openai, base_url: [http://gpu1:8000/v1, http://gpu2:8000/v1]}

Requests fly in a thread of their own; prompts are read, and replies handed out, in the caller's.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from sdft.engines._tally import FIRST, PROBED, Tally
from sdft.engines.base import Continuation, Request, Sampling, TokenLogprobs
from sdft.errors import EngineError, ScoringError
from sdft.models import ModelConfig, load_tokenizer
from sdft.records import Completion, Message, Settings
from sdft.secret import hidden, is_key, where_a_key_is

if TYPE_CHECKING:
    from sdft.engines._servers import Answer, Endpoint

REDUNDANT = ("seed", "top_k", "top_p", "temperature", "stop")
"""Fields of a request that some servers do not take."""
MOST_FAILURES = 20
"""Requests that may fail one after the other before the engine gives up, or looks whether it should."""
PROBE = "Hi"
"""What a server answers that answers anything: where it is refused, too, rows are not refused for their own sake."""
SCORING: tuple[Mapping[str, Any], ...] = ({"prompt_logprobs": 1}, {"echo": True, "logprobs": 1})
"""The fields by which servers score a given text: vLLM's, and those of OpenAI's older models, which SGLang has too."""
SECRET_LENGTH = 16
"""Keys from this length on are looked for in replies, too; a shorter one may be an ordinary word."""


class ServerSettings(Settings):
    """An OpenAI-compatible server, or several that serve the same model."""

    base_url: str | tuple[str, ...] = "http://localhost:8000/v1"
    """Where the API begins, often ending in /v1. Requests are spread over the servers of a list; one that fails
    is left out until it answers again."""
    api_key_env: str | None = None
    """The environment variable that holds the key, such as OPENAI_API_KEY. None: no key is sent."""
    max_concurrency: int = Field(default=32, ge=1, le=1000)
    """Requests in flight at each server; fewer while it answers that there are too many (429)."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that one request may take."""
    max_retries: int = Field(default=5, ge=0)
    """How often one request is sent again after a time-out, an error of the server or a broken answer. Waiting for
    a server that is down or busy does not count."""
    patience: float = Field(default=120.0, ge=0)
    """Seconds without a good answer from any server, while all are down or busy, after which the run stops."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of new tokens; OpenAI's newer models want the second."""
    leave_out: tuple[Literal["seed", "top_k", "top_p", "temperature", "stop"], ...] = ()
    """Fields that the server does not take. Replies are then sampled as it likes."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, such as `chat_template_kwargs: {enable_thinking: false}`."""
    prompt_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens, in any currency."""
    completion_price: float | None = Field(default=None, ge=0)
    """Price of a million generated tokens."""

    @field_validator("base_url")
    @classmethod
    def _plain_urls(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        urls = (value,) if isinstance(value, str) else value
        if not urls:
            raise ValueError("name at least one server")
        for url in urls:
            parts = urlsplit(url)
            user = "@" in (parts.netloc or url)  # also where http:// is missing
            if user or parts.query or parts.fragment or is_key(parts.path):  # not shown: it may hold a key
                raise ValueError("no user, password or query in an address, nor a key; keys come from api_key_env")
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError(f"'{hidden(url)}' is no address such as http://localhost:8000/v1")
        return value

    @field_validator("extra_body")
    @classmethod
    def _no_key_inside(cls, value: dict[str, Any]) -> dict[str, Any]:
        place = where_a_key_is(value)
        if place is not None:  # the value is not shown
            raise ValueError(f"{place}: no key may stand here; keys come from api_key_env")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name_not_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # not shown: it may be a key
            raise ValueError("the name of an environment variable is wanted, not a key")
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers' addresses."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    def missing(self) -> Iterator[str]:
        """What it takes to ask a server and is not here, each with how to get it."""
        if importlib.util.find_spec("openai") is None:
            yield "the package openai is not installed: pip install openai"
        if self.api_key_env and not os.environ.get(self.api_key_env):
            yield f"the environment variable {self.api_key_env} (api_key_env) is not set; it holds the server's key"

    def key(self) -> str | None:
        """The key, from the environment alone. Raises EngineError."""
        for problem in self.missing():
            raise EngineError(f"{self.urls[0]}: {problem}")
        if not self.api_key_env:
            return None
        key = os.environ[self.api_key_env].strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise EngineError(
                f"the environment variable {self.api_key_env} (api_key_env) holds what is no key: a space, a line "
                "break or a character outside ASCII, such as a typographic quote, is in it"
            )
        return key

    @property
    def priced(self) -> bool:
        """Whether a price is given."""
        return self.prompt_price is not None or self.completion_price is not None

    def cost(self, prompt_tokens: int, tokens: int) -> float | None:
        """What so many tokens cost; None where no price is given."""
        if not self.priced:
            return None
        return ((self.prompt_price or 0.0) * prompt_tokens + (self.completion_price or 0.0) * tokens) / 1e6

    def bill(self, prompt_tokens: int, tokens: int) -> str:
        """Tokens and, where prices are given, their cost, in words."""
        cost = self.cost(prompt_tokens, tokens)
        text = f"{prompt_tokens:,} prompt and {tokens:,} reply tokens"
        return text if cost is None else f"{text}, cost {cost:.2f}" if cost >= 1 else f"{text}, cost {cost:.2g}"


class OpenAISettings(ServerSettings):
    """The engine that asks an OpenAI-compatible server (vLLM, SGLang, llama.cpp, TGI, a hosted one)."""

    name: Literal["openai"] = "openai"
    endpoint: Literal["auto", "chat", "completions"] = "auto"
    """`chat` sends turns, and the server applies the chat template; `completions` sends the rendered prompt. `auto`:
    turns where the prompt has them, in chat style."""
    models: dict[str, str] = {}
    """What the server calls each model: `seed`, `sft`, `sdft`. The seed's default is the recipe's `model.name`;
    tuned models must be served, and named here, to be evaluated."""

    def served(self, model: ModelConfig) -> str:
        """What the server calls a model; a name that stands in `models` is one already."""
        return model.name if model.name in self.models.values() else self.models.get("seed", model.name)

    def wants_text(self, style: str) -> bool:
        """Whether prompts of this style are sent as text, for which the model's tokenizer is needed."""
        return style == "verbatim" or self.endpoint == "completions"

    def open(self, model: ModelConfig) -> OpenAIEngine:
        """Get ready to ask; nothing is loaded. Raises EngineError without a key or the package."""
        return OpenAIEngine(self, self.served(model), self.endpoint, model)

    def open_for(self, name: str, model: ModelConfig) -> OpenAIEngine:
        """As `open`, for `seed` or a tuned model, by the server's name for it. Raises EngineError without one."""
        if name != "seed" and name not in self.models:
            raise EngineError(f"engine openai: models: the server's name for the tuned model '{name}' is not given")
        return OpenAIEngine(self, self.models.get(name, model.name), self.endpoint, model)


class OpenAIEngine:
    """See OpenAISettings. Its counts of tokens are the server's: 0 where it does not count."""

    def __init__(
        self,
        settings: ServerSettings,
        model: str,
        endpoint: Literal["auto", "chat", "completions"] = "auto",
        config: ModelConfig | None = None,
    ) -> None:
        """`config` names the tokenizer, which is needed to score replies and loaded only for that."""
        import asyncio

        key = settings.key()
        from sdft.engines._servers import Servers

        self.settings, self.endpoint = settings, endpoint
        self.prompt_tokens = self.tokens = 0
        """Used so far."""
        self._answered = False
        self._config = config
        self._tokenizer: Any = None
        self._scoring: Mapping[str, Any] | None = None
        self._key = key
        self._servers = Servers(settings, model, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sdft-openai", daemon=True)
        self._thread.start()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion for each request as it finishes. `requests` is read as servers have room.

        Failures are handed out only once another request has succeeded: where there is none, a short one that no
        server refuses is sent. Where that fails, too, or MOST_FAILURES in a row are the server's own, EngineError is
        raised, and no dataset turned into error rows.
        """
        import asyncio

        from sdft.engines._servers import NoCompletionsError, RequestFailed

        waiting = iter(requests)
        done: SimpleQueue[Future[Completion]] = SimpleQueue()
        flying: dict[Future[Completion], Request] = {}
        failed: list[Completion] = []
        faults = 0
        self._servers.begin()
        try:
            while True:
                while len(flying) < self._servers.room and (request := next(waiting, None)) is not None:
                    future = asyncio.run_coroutine_threadsafe(self._complete(request, sampling), self._loop)
                    flying[future] = request
                    future.add_done_callback(done.put)
                if not flying:
                    break
                future = done.get()
                asked = flying.pop(future)
                try:
                    completion = future.result()
                except RequestFailed as error:
                    failed.append(_error(asked, str(error)))
                    faults += error.by_server
                    if faults >= MOST_FAILURES:
                        raise _hopeless(failed) from None
                    if len(failed) >= MOST_FAILURES:
                        self._probe(asked, sampling, failed)
                        yield from failed
                        failed.clear()
                    continue
                except NoCompletionsError as error:
                    raise EngineError(
                        f"{error}; prompts as text need /completions: take prompt.style: chat and endpoint: chat, or "
                        "another server"
                    ) from None
                self.prompt_tokens += completion.prompt_tokens
                self.tokens += completion.tokens
                self._answered, faults = True, 0
                yield from failed
                failed.clear()
                yield completion
            if failed and not self._answered:
                self._probe(asked, sampling, failed)
            yield from failed
        finally:
            self._stop(flying)

    def _probe(self, like: Request, sampling: Sampling, failed: list[Completion]) -> None:
        """Ask what is refused for no reason of its own, in the same form. Raises EngineError where that fails, too."""
        import asyncio

        from sdft.engines._servers import RequestFailed

        turns = None if like.messages is None else (Message(role="user", content=PROBE),)
        probe = replace(like, prompt=PROBE, messages=turns)
        future = asyncio.run_coroutine_threadsafe(self._complete(probe, sampling, PROBED), self._loop)
        try:
            future.result()
        except RequestFailed:
            raise _hopeless(failed) from None
        finally:
            self._stop([future])
        self._answered = True

    def _stop(self, flying: Iterable[Future[Any]]) -> None:
        """Cancel what is in flight, and wait until it has ended."""
        import asyncio

        for future in flying:
            future.cancel()
        asyncio.run_coroutine_threadsafe(_settle(), self._loop).result()

    def notes(self) -> list[str]:
        """Which servers were left out at the end, and why."""
        return [f"{s.url} was left out at the end: {s.trouble}" for s in self._servers.servers if s.left_out]

    async def _complete(self, request: Request, sampling: Sampling, letter: bytes = FIRST) -> Completion:
        as_turns = request.messages is not None and self.endpoint != "completions"
        endpoint: Endpoint = "chat" if as_turns else "completions"
        if self.endpoint == "chat" and not as_turns:
            return _error(request, "endpoint: chat sends turns, and this prompt has none; use endpoint: auto")
        answer = await self._servers.ask(endpoint, self.body(request, sampling, endpoint), letter)
        return self._completion(request, answer)

    def body(self, request: Request, sampling: Sampling, endpoint: Endpoint) -> dict[str, Any]:
        """The fields of one request but the model."""
        body: dict[str, Any] = {self.settings.max_tokens_field: sampling.max_new_tokens}
        body["temperature"] = sampling.temperature
        if sampling.temperature > 0:
            body["seed"] = request.seed % 2**31  # some servers take no more than 32 bits
            body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
            body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        if request.stop:
            body["stop"] = list(request.stop)
        for name in self.settings.leave_out:
            body.pop(name, None)
        if endpoint == "chat":
            assert request.messages is not None
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        else:
            body["prompt"] = request.prompt
        return body | self.settings.extra_body

    def _completion(self, request: Request, answer: Answer) -> Completion:
        choice, used = answer.choices[0], answer.usage
        prompt_tokens, tokens = (used.prompt_tokens or 0, used.completion_tokens or 0) if used else (0, 0)
        if choice.message is None:
            text, called = choice.text or "", False
        else:
            text, called = choice.message.content or choice.message.refusal or "", bool(choice.message.tool_calls)
        if called and not text:
            return _error(request, "the server answered with a tool call and no text", prompt_tokens, tokens)
        if choice.finish_reason in ("content_filter", "error", "abort"):
            return _error(request, f"the server broke the reply off ({choice.finish_reason})", prompt_tokens, tokens)
        if self._key and len(self._key) >= SECRET_LENGTH:
            text = text.replace(self._key, "***")
        return Completion(
            id=request.id,
            text=text,
            finish="length" if choice.finish_reason == "length" else "stop",
            prompt_tokens=prompt_tokens,
            tokens=tokens,
        )

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield the log-probabilities of each reply's tokens, in order, by the server's /completions.

        Prompt and reply are sent as the tokens of the model's own tokenizer. Raises EngineError where the server
        scores no given text.
        """
        from sdft.engines._servers import RequestFailed

        waiting = iter(items)
        flying: deque[tuple[_Scored, Future[Answer]]] = deque()
        self._servers.begin()
        try:
            while True:
                while len(flying) < self._servers.room and (item := next(waiting, None)) is not None:
                    row = self._tokenized(item)
                    if self._scoring is None:
                        self._scoring = self._scoring_way(row)
                    flying.append((row, self._ask_scores(row, self._scoring)))
                if not flying:
                    return
                row, future = flying[0]
                try:
                    scores = _scores(row, future.result())
                except RequestFailed as error:
                    raise ScoringError(f"logprobs of '{row.id}': {error}") from None
                flying.popleft()
                if scores is None:
                    raise ScoringError(f"logprobs of '{row.id}': the server's answer does not score each token")
                yield TokenLogprobs(id=row.id, tokens=row.reply, logprobs=scores)
        finally:
            self._stop([future for _, future in flying])

    def _tokenized(self, item: Continuation) -> _Scored:
        if self._config is None:
            raise EngineError("engine openai: to score replies, the model's tokenizer is needed, and none is named")
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._config, weights=False)
        prompt, reply = (
            tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (item.prompt, item.reply)
        )
        if not prompt:
            raise EngineError(f"logprobs of '{item.id}': the prompt is empty")
        return _Scored(item.id, prompt, reply)

    def _ask_scores(self, row: _Scored, way: Mapping[str, Any]) -> Future[Answer]:
        import asyncio

        tokens = [*row.prompt, *row.reply]
        body = {self.settings.max_tokens_field: 1, "temperature": 0.0, "prompt": tokens, **way}
        asking = self._servers.ask("completions", {**body, **self.settings.extra_body})
        return asyncio.run_coroutine_threadsafe(asking, self._loop)

    def _scoring_way(self, row: _Scored) -> Mapping[str, Any]:
        """The fields by which this server scores a given text, found by trying."""
        from sdft.engines._servers import NoCompletionsError, RequestFailed

        why = ""
        for way in SCORING:
            future = self._ask_scores(row, way)
            try:
                if _scores(row, future.result()) is not None:
                    return way
            except RequestFailed as error:
                why = f" ({error})"
            except NoCompletionsError as error:
                raise ScoringError(
                    f"{error}; the log-probabilities of a given text need /completions with prompt_logprobs or echo: "
                    "vLLM has it, and the engine transformers needs no server"
                ) from None
            finally:
                self._stop([future])
        raise ScoringError(
            f"{self.settings.urls[0]}: the server scores no given replies, neither by prompt_logprobs nor by echo"
            f"{why}; vLLM does, and the engine transformers"
        )

    @contextmanager
    def counting(self, path: Path) -> Iterator[Tally]:
        """Count each request that is sent while the block runs in a file."""
        with Tally(path) as tally:
            self._servers.tally = tally
            try:
                yield tally
            finally:
                self._servers.tally = None

    def close(self) -> None:
        """Close the connections and end the thread."""
        import asyncio

        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._servers.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def beyond_needed(path: Path, answered: int) -> list[str]:
    """A note on the requests counted in a file beyond those that so many answered rows need; none without any."""
    note = Tally(path).beyond(answered)
    return [note] if note else []


async def _settle() -> None:
    """Await the tasks of this loop that have been cancelled."""
    import asyncio

    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.cancelling()), return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A given reply to be scored, in tokens."""

    id: str
    prompt: tuple[int, ...]
    reply: tuple[int, ...]


def _scores(row: _Scored, answer: Answer) -> tuple[float, ...] | None:
    """The log-probabilities of the reply's tokens; None where the answer does not have them."""
    choice, first, end = answer.choices[0], len(row.prompt), len(row.prompt) + len(row.reply)
    if choice.prompt_logprobs is not None:
        given = choice.prompt_logprobs
        if len(given) != end:
            return None
        found = [(given[first + n] or {}).get(str(token)) for n, token in enumerate(row.reply)]
        values = [item.logprob if item else None for item in found]
    else:
        echoed = (choice.logprobs and choice.logprobs.token_logprobs) or []
        if len(echoed) not in (end, end + 1):  # with the one token that had to be generated, or without
            return None
        values = echoed[first:end]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(row.reply) else None


def _hopeless(failed: list[Completion]) -> EngineError:
    return EngineError(
        f"{len(failed)} requests failed and none succeeded since, the last: {failed[-1].error}. Mend it, and give the "
        "same command again: what is done is kept"
    )


def _error(request: Request, reason: str, prompt_tokens: int = 0, tokens: int = 0) -> Completion:
    return Completion(id=request.id, text="", finish="error", prompt_tokens=prompt_tokens, tokens=tokens, error=reason)
