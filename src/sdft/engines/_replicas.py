"""Several workers, each with an engine of its own, that answer as one engine.

A worker holds a whole model; requests are handed to the one with the fewest rows in hand, a window of them at a time,
so that the request iterator is never read far ahead. Rows come back as they finish. What a worker had in hand when it
died is given out again, first of all, with the same seeds: since a reply depends on its own prompt and seed alone, the
replies are those of one engine, whatever the number of workers and however often they died. A row that arrived is
never asked for again, and what an abandoned call had under way ends with its worker, so none comes twice.

Workers are processes of this machine (`_processes.py`), or actors of a cluster (`ray.py`).
"""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sdft.engines.base import Continuation, DistributionEngine, Engine, NotedEngine, Request, Sampling, TokenLogprobs
from sdft.errors import EngineError, SdftError
from sdft.models import ModelConfig
from sdft.records import Completion

if TYPE_CHECKING:
    import torch

MAX_DEATHS = 3
"""A worker that dies so often without finishing a row, or over the same row, is not replaced again."""
SCORED_AT_ONCE = 8
"""Given replies that a worker scores before it is asked for more."""

Kind = Literal["generate", "request", "end", "logprobs", "distributions", "ready", "row", "idle", "error", "bug"]
Message = tuple[Kind, Any]
"""To a worker: generate (sampling), request, end (None); logprobs, distributions (continuations).
From it: ready (None), row (a result), idle (notes; all requests are answered), error (an SdftError), bug (a
traceback)."""


class Opens(Protocol):
    """Settings of an engine."""

    def open(self, model: ModelConfig) -> Engine:
        """Load the model. Raises ModelError and EngineError."""
        ...


class WorkerDiedError(Exception):
    """The worker is gone; the text says how."""


class Worker(Protocol):
    """An engine elsewhere, reached by messages."""

    def send(self, message: Message) -> None:
        """Raises WorkerDiedError, or leaves that to `receive`."""
        ...

    def receive(self) -> Message:
        """The next message; waits for it. What was sent before a death is still received. Raises WorkerDiedError."""
        ...

    def stop(self) -> None:
        """End it at once, whatever it is doing."""
        ...


class Crew(Protocol):
    """Where workers come from."""

    def start(self, number: int) -> Worker:
        """Begin to start worker `number`, from 0; it says itself when it is ready."""
        ...

    def wait(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        """Those that have a message or died; waits so long for the first, without end where `seconds` is None.

        Raises EngineError where none will come.
        """
        ...

    def close(self) -> None:
        """Free what the crew itself holds. Its workers are stopped."""
        ...


# In the worker


def serve(settings: Opens, model: ModelConfig, get: Callable[[], Message], send: Callable[[Message], None]) -> None:
    """Open an engine and do what the messages say, until one of them fails."""
    try:
        engine = settings.open(model)
        send(("ready", None))
        while True:
            kind, what = get()
            if kind == "generate":
                for completion in engine.generate(_requests(get), what):
                    send(("row", completion))
                send(("idle", engine.notes() if isinstance(engine, NotedEngine) else []))
            elif kind == "logprobs":
                for scores in engine.logprobs(what):
                    send(("row", scores))
            else:
                assert kind == "distributions" and isinstance(engine, DistributionEngine)
                for distribution in engine.distributions(what):
                    send(("row", distribution.cpu().numpy()))  # copied whole: no memory is shared with this process
    except SdftError as error:
        send(("error", error))
    except Exception:
        send(("bug", traceback.format_exc()))


def _requests(get: Callable[[], Message]) -> Iterator[Request]:
    while (message := get())[0] == "request":
        yield message[1]


# Beside the stages


@dataclass(slots=True, eq=False)
class _Place:
    """A worker's place: those that die are replaced in it."""

    number: int
    worker: Worker | None = None
    is_ready: bool = False
    is_asking: bool = False
    """It was told to generate, and not yet that no more requests come."""
    sessions: int = 0
    """Calls to generate that it has not yet said to be done with."""
    rows: dict[str, Request] = field(default_factory=dict)
    """What it has in hand."""
    deaths: int = 0
    """In a row: none of its rows finished in between."""


class Replicas:
    """Workers as one engine. `window`: requests that each has in hand at most, those it waits with included."""

    def __init__(self, crew: Crew, count: int, window: int) -> None:
        self.crew, self.window = crew, window
        self._places = [_Place(number) for number in range(count)]
        self._notes: dict[int, list[str]] = {}
        self._deaths = 0

    def start(self, enough: int) -> None:
        """Start all workers and wait until `enough` are ready. Raises what keeps them from it."""
        try:
            self._fill()
            while sum(place.is_ready for place in self._places) < enough:
                self._hear()
                self._fill()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every worker."""
        for place in self._places:
            self._empty(place)
        self.crew.close()

    def notes(self) -> list[str]:
        """What a person should know of how it went."""
        told = sorted({note for notes in self._notes.values() for note in notes})
        if self._deaths:
            told.append(f"replicas died and were replaced: {self._deaths}; the rows they had in hand were done again")
        return told

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion for each request as it finishes. `requests` is read as workers become free.

        Raises EngineError where a worker dies again and again, and what an engine raises.
        """
        source, again, is_read = iter(requests), deque[Request](), False
        lost: Counter[str] = Counter()
        try:
            while True:
                if again or not is_read:
                    self._fill()
                while (place := self._freest()) is not None and not (is_read and not again):
                    request = again.popleft() if again else next(source, None)
                    if request is None:
                        is_read = True
                    else:
                        self._ask(place, request, sampling)
                if is_read and not again:
                    for place in self._places:
                        self._tell_end(place)
                    if not any(place.sessions for place in self._places):
                        return
                for place, (kind, what) in self._heard(None, self._places):
                    if kind == "row":
                        del place.rows[what.id]
                        place.deaths = 0
                        yield what
                    elif kind == "idle":
                        place.sessions -= 1
                        self._notes[place.number] = what
                for place in self._places:
                    if place.worker is None and place.rows:
                        lost.update(place.rows.keys())
                        again.extend(place.rows.values())
                        place.rows, place.sessions, place.is_asking = {}, 0, False
                        row, deaths = lost.most_common(1)[0]
                        if deaths >= MAX_DEATHS:
                            raise EngineError(
                                f"{deaths} replicas of the engine died with row '{row}' in hand; finished rows are "
                                "kept, and the same command goes on; where it is memory that is short, take fewer "
                                "replicas or a smaller max_batch_size"
                            )
        finally:
            for place in self._places:
                if place.sessions or place.rows:  # an abandoned call: nothing of it may come up in a later one
                    self._empty(place)

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield the natural log-probabilities of each reply's tokens, in order."""
        return self._scored("logprobs", items)

    def _scored(self, kind: Kind, items: Iterable[Continuation]) -> Iterator[Any]:
        """Results in the items' order: each worker has some of them in hand, and the first in line is listened to."""
        source = iter(items)
        line: deque[tuple[_Place, deque[Continuation]]] = deque()
        is_read = False
        try:
            while True:
                self._fill()
                self._hear(0 if line else None, [place for place in self._places if not place.is_ready])
                taken = {place.number for place, _ in line}
                for place in self._places:
                    if is_read or not place.is_ready or place.number in taken:
                        continue
                    if some := deque(islice(source, SCORED_AT_ONCE)):
                        line.append((place, some))
                        self._send(place, (kind, list(some)))
                    else:
                        is_read = True
                if line:
                    place, left = line.popleft()
                    yield from self._scores_of(place, kind, left)
                elif is_read:
                    return
        finally:
            for place, _ in line:
                self._empty(place)

    def _scores_of(self, place: _Place, kind: Kind, left: deque[Continuation]) -> Iterator[Any]:
        """The rest of a worker's results; where it dies, a new one is given what is left."""
        is_sent = True
        try:
            while left:
                self._fill()
                if place.is_ready and not is_sent:
                    is_sent = self._send(place, (kind, list(left)))
                message = self._receive(place)
                if place.worker is None:
                    is_sent = False
                elif message is not None:
                    left.popleft()
                    place.deaths = 0
                    yield message[1]
        finally:
            if left:
                self._empty(place)

    # Workers

    def _fill(self) -> None:
        for place in self._places:
            if place.worker is None and not place.rows:
                place.worker = self.crew.start(place.number)

    def _empty(self, place: _Place) -> None:
        if place.worker is not None:
            place.worker.stop()
        place.worker, place.is_ready, place.is_asking, place.sessions = None, False, False, 0
        place.rows = {}

    def _freest(self) -> _Place | None:
        """The worker with the fewest rows in hand, if there is one that takes more."""
        free = [place for place in self._places if place.is_ready and len(place.rows) < self.window]
        return min(free, key=lambda place: len(place.rows), default=None)

    def _ask(self, place: _Place, request: Request, sampling: Sampling) -> None:
        place.rows[request.id] = request
        if not place.is_asking:
            place.is_asking = True
            place.sessions += 1
            self._send(place, ("generate", sampling))
        self._send(place, ("request", request))

    def _tell_end(self, place: _Place) -> None:
        if place.is_asking:
            place.is_asking = False
            self._send(place, ("end", None))

    def _send(self, place: _Place, message: Message) -> bool:
        """Whether it may have arrived; a death is noted."""
        try:
            if place.worker is not None:
                place.worker.send(message)
        except WorkerDiedError:
            pass  # it is heard of when the worker is listened to, after what it said before
        return place.worker is not None

    def _heard(self, seconds: float | None, places: Sequence[_Place]) -> Iterator[tuple[_Place, Message]]:
        """A message of each worker that has one; a worker that became ready or died is noted."""
        there = [place for place in places if place.worker is not None]
        heard = self.crew.wait([place.worker for place in there if place.worker is not None], seconds) if there else []
        for place in there:
            if place.worker in heard and (message := self._receive(place)) is not None:
                yield place, message

    def _hear(self, seconds: float | None = None, places: Sequence[_Place] | None = None) -> None:
        """Wait for workers that were asked nothing."""
        for place, (kind, _) in self._heard(seconds, self._places if places is None else places):
            raise AssertionError(f"replica {place.number} was asked nothing and says {kind}")

    def _receive(self, place: _Place) -> Message | None:
        """The worker's next message. Raises what the worker's engine raised, and EngineError after too many deaths."""
        assert place.worker is not None
        try:
            kind, what = place.worker.receive()
        except WorkerDiedError as death:
            self._bury(place, str(death))
            return None
        if kind == "error":
            raise what
        if kind == "bug":
            raise RuntimeError(f"replica {place.number} failed:\n{what}")
        if kind == "ready":
            place.is_ready = True
            return None
        return kind, what

    def _bury(self, place: _Place, how: str) -> None:
        was_ready, rows = place.is_ready, place.rows
        self._empty(place)
        place.rows = rows  # for `generate` to hand out again
        place.deaths += 1
        self._deaths += 1
        if place.deaths >= MAX_DEATHS:
            hint = (
                "where it is memory that is short, take fewer replicas or a smaller max_batch_size"
                if was_ready
                else "what it wrote stands above; a script that calls sdft with replicas needs `if __name__ == "
                "'__main__':` around what it runs, and a system short of memory ends processes too"
            )
            raise EngineError(
                f"a replica of the engine died {place.deaths} times in a row, the last time {how}"
                f"{'' if was_ready else ' before it was ready'}; finished rows are kept, and the same command goes on; "
                f"{hint}"
            )


class DistributionReplicas(Replicas):
    """Workers whose engines give whole distributions."""

    def distributions(self, items: Iterable[Continuation]) -> Iterator[torch.Tensor]:
        """Yield next-token log-probabilities at each reply token: float32, (reply tokens, vocabulary), in order."""
        import torch

        for array in self._scored("distributions", items):
            yield torch.tensor(array)
