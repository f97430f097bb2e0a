"""Requests to one or more OpenAI-compatible servers: spread, slowed down, repeated. Runs in an event loop.

What can go wrong is of five kinds:

- not now (no connection, 429, 503): the server's state, not the request's fault. The server is left alone for as
  long as it asks, or for a growing while, and the request waits for the next server that is free. A single one among
  good answers, without a time to wait, only slows the server down a little.
- a failure (time-out, 500, a broken answer): the request is sent again, at most `max_retries` times.
- refused (400, 413, 422): the request fails for good.
- not here (404): the server has no such model or path. It is left alone as one that is down, and the request goes to
  another; EngineError where all say so.
- hopeless (401, 403, an empty account): EngineError at once. All servers are sent the same key.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError, model_validator

from sdft.engines._tally import AGAIN, FIRST, PROBED, Tally
from sdft.engines.openai import PROBE, REDUNDANT, ServerSettings
from sdft.errors import EngineError, did_you_mean

FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0
"""Seconds: how long a server is left alone after one fault, and at most after many."""
LONGEST_NAP = 60.0
"""Seconds that one request waits at most, where a server that failed asks for it, before it is sent again."""
EMPTY = re.compile(r"insufficient.{0,3}(balance|credit|fund|quota)|credit balance is too low", re.IGNORECASE)
"""How servers say that there is nothing left to pay with."""
LONGEST_PAUSE = 3600.0
"""Seconds: a server that asks for more is not waited for."""
STUMBLES = 3
"""Failures in a row after which a server is left alone for a while."""

Endpoint = Literal["chat", "completions"]


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _TokenLogprob(BaseModel):
    logprob: float


class _Echoed(BaseModel):
    token_logprobs: list[float | None] | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    prompt_logprobs: list[dict[str, _TokenLogprob] | None] | None = None
    """vLLM's: for each token of the prompt, by token id."""
    logprobs: _Echoed | None = None
    """Of a completion whose prompt is echoed: for each token of both."""
    text: str | None = None
    message: _Message | None = None

    @model_validator(mode="after")
    def _says_something(self) -> _Choice:
        if self.text is None and self.message is None:
            raise ValueError("neither a text nor a message")
        return self


class _Tokens(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Told(BaseModel):
    message: str = "no reason told"
    code: int | str | None = None


class _Complaint(BaseModel):
    """An error in an answer that says that all is well, as gateways send it."""

    error: _Told


class Answer(BaseModel):
    """The parts of an answer that are used, and all that a server must send."""

    id: str | int | None = None
    choices: list[_Choice] = Field(min_length=1, max_length=1)
    """One is asked for; an answer with several is not one to this request."""
    usage: _Tokens | None = None


_OWN_NAME = re.compile(r"sdft-[0-9a-f]{8}-[0-9]+")
"""What requests of this toolkit are called; servers that repeat the name tell by it whose answer it is."""


def _request_names() -> Iterator[str]:
    """A new name for every request sent, repetitions too."""
    own = secrets.token_hex(4)
    return (f"sdft-{own}-{number}" for number in itertools.count())


class RequestFailed(Exception):
    """This request failed for good."""

    def __init__(self, reason: str, by_server: bool) -> None:
        super().__init__(reason)
        self.by_server = by_server
        """Whether the server is at fault rather than the request."""


class _NotNow(Exception):
    def __init__(self, reason: str, pause: float | None, down: bool, gone: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the server asks for."""
        self.down = down
        """Whether it does not work at all."""
        self.gone = gone
        """Whether nothing can be reached there."""


class _NotHere(Exception):
    def __init__(self, reason: str, path: bool) -> None:
        super().__init__(reason)
        self.path = path
        """Whether the path is what is missing, and not the model."""


class NoCompletionsError(EngineError):
    """The servers answer at /chat/completions, and not at /completions."""


class _Failed(Exception):
    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the server asks for."""


@dataclass(slots=True)
class Server:
    """One server, and how much it bears."""

    url: str
    client: openai.AsyncOpenAI
    limit: float
    """Requests at once, for now."""
    quick_to: float
    """Up to here the limit grows by one with each answer, above it more and more slowly."""
    active: int = 0
    ready_at: float = 0.0
    """Until then it is left alone, in `time.monotonic` seconds."""
    stumbled_at: float = -1.0
    stumbles: int = 0
    """Faults since its last good answer; those of requests that were in flight together count once."""
    trouble: str = ""
    """The last of them, in words."""
    lacks: _NotHere | None = None
    """The last of them, where it said that it has no such model or path."""
    left_out: bool = False
    """Whether it has been left alone for its faults, and not answered well since."""

    def answered(self, most: int) -> None:
        """Let it do a little more."""
        self.stumbles = 0
        self.lacks, self.left_out = None, False
        self.limit = min(float(most), self.limit + (1.0 if self.limit < self.quick_to else 1.0 / self.limit))

    def stumbled(self, started: float, reason: str) -> bool:
        """Note a fault; whether it is a new one, and not that of a request sent before the last one was known."""
        self.trouble, self.lacks = reason, None
        if started < self.stumbled_at:
            return False
        self.stumbled_at = time.monotonic()
        self.stumbles += 1
        return True

    def rest(self, seconds: float | None) -> None:
        """Leave it alone for so long, or for a while that grows with its faults."""
        self.left_out = True
        pause = _pause(self.stumbles - 1) if seconds is None else seconds * (1 + 0.1 * random.random())
        self.ready_at = max(self.ready_at, time.monotonic() + pause)


@dataclass(slots=True)
class Servers:
    """All servers of one engine. Use it inside one event loop."""

    settings: ServerSettings
    model: str
    key: str | None
    heard: float = field(default_factory=time.monotonic)
    """When a server last gave a good answer, or was asked without any trouble being known of it."""
    tried: float = 0.0
    """When one last said: not now."""
    servers: list[Server] = field(default_factory=list)
    tally: Tally | None = None
    """Where each request is counted as it is sent."""
    _napping: int = 0
    _names: Iterator[str] = field(default_factory=_request_names)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        most = self.settings.max_concurrency
        timeout = httpx2.Timeout(self.settings.timeout, connect=min(10.0, self.settings.timeout))
        for url in self.settings.urls:
            client = openai.AsyncOpenAI(
                api_key=self.key or "none",
                admin_api_key="",
                base_url=url,
                timeout=timeout,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(
                    limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most), timeout=timeout
                ),
            )
            # Without `api_key_env` nothing goes out that the environment holds for OpenAI's own servers.
            client.organization = client.project = None
            client._custom_headers = {}
            self.servers.append(Server(url, client, limit=most, quick_to=most))

    def begin(self) -> None:
        """Count patience from now."""
        self.heard = self.tried = time.monotonic()

    @property
    def room(self) -> int:
        """Requests that all servers together bear at once, for now, and those that wait for another try."""
        most = self.settings.max_concurrency * len(self.servers)
        return max(1, min(most, sum(int(server.limit) for server in self.servers) + self._napping))

    async def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            await server.client.close()

    def clean(self, text: str) -> str:
        """A server's text as it may be shown: without the key, on one line, not too long."""
        if self.key:
            text = text.replace(self.key, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else text[:297] + "..."

    async def ask(self, endpoint: Endpoint, body: Mapping[str, Any], letter: bytes = FIRST) -> Answer:
        """The answer to one request, which is counted by its letter.

        Raises RequestFailed, and EngineError where no server can go on.
        """
        failures = 0
        while True:
            server = await self._turn()
            started, nap = time.monotonic(), 0.0
            if self.tally:
                self.tally.sent(letter)
            letter = AGAIN
            try:
                answer = await self._send(server, endpoint, body)
            except _NotHere as error:
                if server.stumbled(started, str(error)):
                    server.quick_to, server.limit = server.limit, 1.0
                    server.rest(None)
                server.lacks = error
                self.tried = time.monotonic()
                self._refuse_where_nobody_has_it()
            except _NotNow as error:
                new = server.stumbled(started, str(error))
                serious = error.gone or error.pause is not None or server.stumbles > 1
                if new and not serious:  # one among good answers: a little less is enough
                    server.limit = server.quick_to = max(1.0, 0.75 * server.active)
                elif new:
                    server.quick_to = server.limit if error.down else max(1.0, server.limit / 2)
                    server.limit = 1.0 if error.down else max(1.0, server.active / 2)
                if serious:
                    server.rest(error.pause)
                else:
                    nap = _pause(0)
                self.tried = time.monotonic()
            except _Failed as error:
                failures += 1
                if server.stumbled(started, str(error)) and server.stumbles >= STUMBLES:
                    server.rest(error.pause)
                nap = max(_pause(failures - 1), min(error.pause or 0.0, LONGEST_NAP))
                if failures > self.settings.max_retries:
                    times = f" ({failures} times)" if failures > 1 else ""
                    raise RequestFailed(f"{error}{times}", by_server=True) from None
            else:
                self.heard = time.monotonic()
                server.answered(self.settings.max_concurrency)
                return answer
            finally:
                server.active -= 1
                self._freed.set()
            if nap:
                self._napping += 1
                try:
                    await asyncio.sleep(nap)
                finally:
                    self._napping -= 1

    async def _turn(self) -> Server:
        """The least busy server that is ready, taken for one request; waits for one."""
        while True:
            now = time.monotonic()
            ready = [s for s in self.servers if s.ready_at <= now and s.active < int(s.limit)]
            if ready:
                server = min(ready, key=lambda s: s.active / s.limit)
                server.active += 1
                if not server.stumbles:
                    self.heard = now
                return server
            self._refuse_to_wait_forever(now)
            waits = [s.ready_at - now for s in self.servers if s.ready_at > now]
            self._freed.clear()
            try:
                async with asyncio.timeout(min(waits) if waits else None):
                    await self._freed.wait()
            except TimeoutError:
                pass

    def _refuse_to_wait_forever(self, now: float) -> None:
        if any(server.active for server in self.servers):
            return
        long = min(self.servers, key=lambda server: server.ready_at)
        if long.ready_at - now > LONGEST_PAUSE:
            why = f"it asks to be left alone for {long.ready_at - now:.0f} s"
        elif self.tried - self.heard > self.settings.patience:  # a pause that it asked for is waited out first
            why = f"no good answer for {now - self.heard:.0f} s"
        else:
            return
        others = f" (and {len(self.servers) - 1} more)" if len(self.servers) > 1 else ""
        raise EngineError(
            f"{long.url}{others}: {why}; the last was: {long.trouble}. Give the same command again when it answers: "
            "what is done is kept"
        )

    def _refuse_where_nobody_has_it(self) -> None:
        lacking = [server.lacks for server in self.servers if server.lacks]
        if len(lacking) == len(self.servers):
            kind = NoCompletionsError if all(error.path for error in lacking) else EngineError
            raise kind("; ".join(map(str, lacking)))

    async def _send(self, server: Server, endpoint: Endpoint, body: Mapping[str, Any]) -> Answer:
        name = next(self._names)
        try:
            async with asyncio.timeout(self.settings.timeout):
                # Not by the client's own methods for the two: they walk through every message to rename fields that
                # need none, a sixth of all that a request costs here.
                got = await server.client.post(
                    "/chat/completions" if endpoint == "chat" else "/completions",
                    cast_to=httpx2.Response,
                    body={"model": self.model, **body},
                    options={"headers": {"X-Request-Id": name}, "security": {"bearer_auth": True}},
                )
                if b'"error"' in got.content[:200]:
                    self._complain(server, got.content)
                answer, named = Answer.model_validate_json(got.content), got.headers.get("x-request-id")
                if others := {*_OWN_NAME.findall(f"{named} {answer.id}")} - {name}:
                    raise _Failed(f"{server.url}: the answer is that to another request ({others.pop()}, not {name})")
                return answer
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = self.clean(f"{where}: {first['msg']}" if where else first["msg"])
            raise _Failed(f"{server.url}: the answer is not one of an OpenAI-compatible server ({what})") from None
        except openai.APIStatusError as error:
            raise await self._judged(server, error, endpoint, body) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
                what = self.clean(str(cause)) or "no connection"
                raise _NotNow(f"{server.url}: cannot be reached ({what})", None, down=True, gone=True) from None
            if isinstance(error, openai.APITimeoutError):
                raise _Failed(f"{server.url}: no answer within {self.settings.timeout:g} s") from None
            raise _Failed(f"{server.url}: the connection broke ({type(cause).__name__})") from None
        except TimeoutError:
            raise _Failed(f"{server.url}: no answer within {self.settings.timeout:g} s") from None

    def _complain(self, server: Server, content: bytes) -> None:
        """Raise what an error in a good answer's place means."""
        try:
            told = _Complaint.model_validate_json(content).error
        except ValidationError:
            return
        where = f"{server.url}: {self.clean(f'{told.code} - {told.message}' if told.code else told.message)}"
        if str(told.code) in ("429", "503"):
            raise _NotNow(where, None, down=False)
        raise _Failed(where)

    async def _judged(
        self, server: Server, error: openai.APIStatusError, endpoint: Endpoint, body: Mapping[str, Any]
    ) -> Exception:
        """What an answer with an error code means."""
        code = error.status_code
        message = error.message.removeprefix("Error code: ")
        said = self.clean(message if " - " in message else f"{code} - {error.response.text}")
        where = f"{server.url}: {said}"
        if code == 402 or "insufficient_quota" in (error.code, error.type) or (code < 500 and EMPTY.search(said)):
            return EngineError(f"{where}; the account is empty: fill it, then give the same command again")
        if code in (429, 503):
            return _NotNow(where, retry_after(error.response.headers), down=code == 503)
        if code in (401, 403):
            env = self.settings.api_key_env
            way_out = (
                f"check the key in the environment variable {env}"
                if env
                else "where it wants a key, put it into an environment variable and name that in api_key_env"
            )
            return EngineError(f"{where}; the server refuses access: {way_out}")
        if code == 404 and endpoint == "completions" and await self._chats(server):
            return _NotHere(f"{where}; the server answers '{self.model}' at /chat/completions alone", path=True)
        if code == 404:
            hint = await self._known_models(server)
            return _NotHere(f"{where}; the server knows no model '{self.model}'{hint}", path=False)
        if code in (408, 409) or code >= 500:
            return _Failed(where, retry_after(error.response.headers))
        if code in (400, 422) and (named := [n for n in REDUNDANT if n in body and _is_refused(n, error.param, said)]):
            return EngineError(f"{where}; where the server does not take a field, name it: leave_out: [{named[0]}]")
        return RequestFailed(where, by_server=False)

    async def _chats(self, server: Server) -> bool:
        """Whether the server answers turns by this model, so that a path is what it lacks."""
        turns = [{"role": "user", "content": PROBE}]
        if self.tally:
            self.tally.sent(PROBED)
        try:
            async with asyncio.timeout(self.settings.timeout):
                await server.client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    body={"model": self.model, "messages": turns, self.settings.max_tokens_field: 1},
                    options={"security": {"bearer_auth": True}},
                )
        except (openai.OpenAIError, TimeoutError):
            return False
        return True

    async def _known_models(self, server: Server) -> str:
        """What to do about a model that is not there; the server says which ones it has."""
        try:
            async with asyncio.timeout(10):
                names = [model.id async for model in server.client.models.list()]
        except (openai.OpenAIError, TimeoutError, TypeError, ValueError):
            return ", or base_url is not where its API begins (it often ends in /v1)"
        return self.clean(did_you_mean(self.model, names))


def _is_refused(name: str, param: str | None, said: str) -> bool:
    """Whether a server's words are against a field, and do not only hold the word, as where they quote the prompt."""
    if param is not None:
        return param == name
    named = rf"""(^|[^\w])['"`{{]*{name}['"`}}]*"""
    against = "unrecognized|unsupported|unexpected|unknown|extra|not supported|not permitted|not allowed|invalid"
    return (
        re.search(rf"({against})[^.]{{0,60}}?{named}($|[^\w])|{named}[^.]{{0,30}}?({against})", said, re.I) is not None
    )


def _pause(faults: int) -> float:
    """Seconds that double with each fault; jittered, so that clients do not come back all at once."""
    pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** min(max(faults, 0), 16))
    return pause * (0.5 + 0.5 * random.random())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait for, from 0; None where it names none that can be read."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            try:
                # By the server's own clock where it tells it: this machine's may be wrong, or jump.
                now = parsedate_to_datetime(headers["date"]) if headers.get("date") else datetime.now(UTC)
                seconds = (parsedate_to_datetime(text).astimezone(UTC) - now.astimezone(UTC)).total_seconds()
            except ValueError:
                continue
        if seconds == seconds:
            return max(0.0, seconds)
    return None
