"""Generate with a transformers model: continuous batching over a cache of slots.

Finished rows leave and waiting ones enter; prompts are never padded into one another. Each reply depends only on
its own prompt and seed, not on its neighbours, so an interrupted job ends with the same replies (bit for bit on
a CPU; on a GPU, kernels chosen by batch size may tip a near-tie).
"""

from __future__ import annotations

import gc
import inspect
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sdft.engines._processes import open_processes, visible_gpus
from sdft.engines._replicas import DistributionReplicas
from sdft.engines._stops import split_stops
from sdft.engines.base import Continuation, Request, Sampling, TokenLogprobs
from sdft.errors import EngineError, ScoringError
from sdft.memory import MOST_ROWS, USABLE, free_memory, guess_device, rows_that_fit
from sdft.models import ModelConfig, load_model, load_tokenizer
from sdft.records import Completion, Finish, Settings

if TYPE_CHECKING:
    import torch

    from sdft.engines._slots import SlotCache

MIN_SLOTS = 4
MIN_PREFIX = 8
SCORED_ROWS = 256
"""Positions of replies whose whole next-token distributions are held at once."""
STOP_WINDOW = 24
"""Tokens at the end of a reply that are searched for a stop string."""


class TransformersSettings(Settings):
    """The engine that runs a transformers model: in this process, or a replica in each of several."""

    name: Literal["transformers"] = "transformers"
    max_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows decoded at once. `auto`: as many as the free memory holds, at most 256 on a GPU and 32 elsewhere."""
    prefill_tokens: int | None = Field(default=None, ge=1)
    """Prompt tokens taken in at once. None: 1024 on a CPU, 8192 on a GPU."""
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes with the whole model each, on a GPU of its own or with a share of the CPU's threads; each takes
    `max_batch_size` rows. `auto`: one for each GPU, else 1, which is this process."""

    @property
    def window(self) -> int:
        """Rows that a replica is given at most: some more than it works on, so that it need not wait for the next."""
        rows = MOST_ROWS[guess_device()] if self.max_batch_size == "auto" else self.max_batch_size
        return rows + max(2, rows // 4)

    def open(self, model: ModelConfig) -> TransformersEngine | DistributionReplicas:
        """Load the model. Raises ModelError, and EngineError where replicas cannot be started."""
        gpus = len(visible_gpus(model))
        count = max(1, gpus) if self.replicas == "auto" else self.replicas
        if count == 1:
            return TransformersEngine(self, model)
        shared = self.max_batch_size == "auto" and not gpus  # each would take all memory that is free for its own
        rows = MOST_ROWS["cpu"] if shared else self.max_batch_size
        each = self.model_copy(update={"replicas": 1, "max_batch_size": rows})
        return open_processes(each, model, count, each.window)


@dataclass(slots=True)
class _Row:
    """A request on its way."""

    request: Request
    prompt: list[int]
    prefix: int
    """Leading tokens of the prompt that are taken from the shared prefix."""
    room: int
    draw: random.Random
    stop_strings: tuple[str, ...]
    stop_ids: frozenset[int]
    reply: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A given reply to be scored, in tokens."""

    item: Continuation
    prompt: list[int]
    reply: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.reply


class TransformersEngine:
    """See TransformersSettings.

    The weights carry no gradient, so nothing is recorded; `inference_mode` around a generator's `yield` would
    leak into the caller.
    """

    def __init__(self, settings: TransformersSettings, config: ModelConfig) -> None:

        from sdft.engines import _packing, _slots

        self.settings = settings
        self.tokenizer: Any = load_tokenizer(config)
        self.model: Any = load_model(config)
        self.device: torch.device = self.model.device
        self.dtype: torch.dtype = self.model.dtype
        self.wanted_rows = self._rows_that_fit() if settings.max_batch_size == "auto" else settings.max_batch_size
        self.rows_at_once = self.wanted_rows
        """Fewer after the device has been out of memory."""
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        eos = self.model.generation_config.eos_token_id
        ids = {self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
        self.end_ids = frozenset(token for token in ids if token is not None)
        self._prefixes: dict[str, list[int]] = {}
        self.has_plain_head = self._head_is_plain()
        self.uses_slots = self.has_plain_head and has_plain_attention(self.model)
        if self.uses_slots:
            self.model.set_attn_implementation(_slots.ATTENTION)
        if self.device.type == "cpu" and _packing.can_pack(self.dtype):
            _packing.pack_linears(self.model)

    def _rows_that_fit(self) -> int:
        """How many rows the memory that the weights have left can hold."""
        import torch

        device: Any = self.device.type
        config = self.model.config.get_text_config()
        heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
        free = torch.cuda.mem_get_info(self.device)[0] if device == "cuda" else free_memory(device)
        if not heads or not layers or free is None:  # an architecture with other names
            return MOST_ROWS["cpu"]
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        numbers = 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * size
        return rows_that_fit(USABLE * free, numbers * self.dtype.itemsize, device)

    def _head_is_plain(self) -> bool:
        """Whether logits are the output layer's and nothing more: some models scale or cap them."""
        import torch

        ids = torch.arange(1, 1 + MIN_SLOTS, device=self.device)[None]
        out = self.model(input_ids=ids, use_cache=False).logits[0]
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        return bool(torch.allclose(out, self._logits(hidden), rtol=1e-3, atol=1e-3))

    def close(self) -> None:
        """Free the model."""
        self.model = None
        self._free()

    def _free(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def notes(self) -> list[str]:
        """What a person should know of how it went."""
        if self.rows_at_once == self.wanted_rows:
            return []
        return [f"the device was out of memory at max_batch_size={self.wanted_rows}: went on with {self.rows_at_once}"]

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion for each request as it finishes. `requests` is read as slots become free.

        Out of memory, it goes on with half as many rows at once; those that were under way begin anew, with the same
        seeds. Raises EngineError where not even one fits.
        """
        import torch

        generate = self._generate_slots if self.uses_slots else self._generate_padded
        waiting = iter(requests)
        taken: dict[str, Request] = {}

        def asked() -> Iterator[Request]:
            yield from list(taken.values())
            for request in waiting:
                taken[request.id] = request
                yield request

        while True:
            try:
                for completion in generate(asked(), sampling):
                    del taken[completion.id]
                    yield completion
                return
            except torch.OutOfMemoryError:
                if self.rows_at_once == 1:
                    raise EngineError(
                        "the device is out of memory with a single row; take a smaller model, a shorter max_new_tokens "
                        "or lower prefill_tokens, and run the same command again: finished rows are kept"
                    ) from None
            self.rows_at_once //= 2
            self._free()  # only here is the error gone, and with it what it held

    # Continuous batching

    def _generate_slots(self, requests: Iterator[Request], sampling: Sampling) -> Iterator[Completion]:
        from sdft.engines._slots import SlotCache

        cache = SlotCache(self.model.config, 16 if self.device.type == "cpu" else 64, self.dtype, self.device)
        prefix: list[int] = []  # the tokens whose keys and values the cache keeps for later prompts
        active: list[_Row] = []  # row i of the batch stands in slot i
        waiting: deque[_Row] = deque()
        while True:
            while len(waiting) + len(active) < self.rows_at_once:
                request = next(requests, None)
                if request is None:
                    break
                row = self._start(request, sampling)
                if isinstance(row, Completion):
                    yield row
                else:
                    waiting.append(row)
            if not waiting and not active:
                return
            if not active:  # rows of like length side by side: they are attended together
                waiting = deque(sorted(waiting, key=lambda row: (row.request.prefix, -len(row.prompt))))
            if waiting and not active and waiting[0].prefix and waiting[0].prompt[: waiting[0].prefix] != prefix:
                prefix = waiting[0].prompt[: waiting[0].prefix]
                self._prefill_prefix(prefix, cache)
            entered = self._enter(waiting, active, prefix, cache, sampling)
            yield from self._leave(entered, active, cache)
            if active and not (entered and waiting and len(active) < self.rows_at_once):
                tokens = self._decode(active, cache, sampling)
                for row, token in zip(active, tokens, strict=True):
                    row.reply.append(token)
                yield from self._leave(list(active), active, cache)

    def _start(self, request: Request, sampling: Sampling) -> _Row | Completion:
        prompt = self._tokenize(request.prompt)
        room = min(sampling.max_new_tokens, self.context - len(prompt))
        if not prompt or room < 1:
            why = "the prompt is empty" if not prompt else f"the prompt leaves no room in {self.context} tokens"
            return Completion(
                id=request.id, text="", finish="error", prompt_tokens=len(prompt), tokens=0,
                error=f"{why} ({len(prompt)} tokens)",
            )  # fmt: skip
        stop_ids, strings = split_stops(self.tokenizer, request.stop)
        draw = random.Random(request.seed)
        prefix = self._shared_tokens(request.prefix, prompt)
        return _Row(request, prompt, prefix, room, draw, strings, self.end_ids | stop_ids)

    def _shared_tokens(self, prefix: str, prompt: list[int]) -> int:
        """How many of the prompt's tokens are those of its shared prefix.

        The last token of the prefix may read differently with what follows it, so it is left out. Decided by the
        request alone, whatever else is asked.
        """
        ids = self._prefix_ids(prefix)
        return len(ids) if ids and prompt[: len(ids)] == ids and len(prompt) - len(ids) >= MIN_SLOTS else 0

    def _prefix_ids(self, prefix: str) -> list[int]:
        if prefix not in self._prefixes:
            ids = self._tokenize(prefix)[:-1] if prefix else []
            self._prefixes[prefix] = ids if len(ids) >= MIN_PREFIX else []
        return self._prefixes[prefix]

    def _prefill_prefix(self, prefix: list[int], cache: SlotCache) -> None:
        if prefix:
            cache.begin_prefill(0, [len(prefix)])
            self._hidden([prefix], [list(range(len(prefix)))], cache)
        cache.keep_prefix(len(prefix))

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _enter(
        self, waiting: deque[_Row], active: list[_Row], prefix: list[int], cache: SlotCache, sampling: Sampling
    ) -> list[_Row]:
        """Take in the next prompts that fit the prefill budget, and their first tokens."""

        from sdft.engines._sampling import next_tokens

        budget = self._prefill_budget
        group: list[_Row] = []
        tokens: list[int] = []
        start = 0
        while waiting and len(active) + len(group) < self.rows_at_once:
            row = waiting[0]
            if row.prefix and row.prompt[: row.prefix] != prefix:
                break  # it shares another prefix: its turn comes when the batch has run empty
            if group and (row.prefix != start or len(tokens) + len(row.prompt) - start > budget):
                break
            start = row.prefix
            tokens += row.prompt[start:]
            group.append(waiting.popleft())
        if not group:
            return []
        lengths = [len(row.prompt) - start for row in group]
        positions = [position for length in lengths for position in range(start, start + length)]
        idle = [0] * (MIN_SLOTS - len(tokens))  # ignored
        cache.begin_prefill(len(active), lengths, start)
        hidden = self._hidden([tokens + idle], [positions + idle], cache)
        logits = self._logits(hidden[0, [end - 1 for end in accumulate(lengths)]])
        for row, token in zip(group, next_tokens(logits, sampling, [row.draw for row in group]), strict=True):
            row.reply.append(token)
        active.extend(group)
        return group

    def _decode(self, active: list[_Row], cache: SlotCache, sampling: Sampling) -> list[int]:
        """One more token for every active row."""

        from sdft.engines._sampling import next_tokens

        idle = [1] * (MIN_SLOTS - len(active))  # slots that are computed too, and ignored
        lengths = [len(row.prompt) + len(row.reply) for row in active] + idle
        cache.begin_decode(lengths)
        ids = [[row.reply[-1]] for row in active] + [[token] for token in idle]
        hidden = self._hidden(ids, [[length - 1] for length in lengths], cache)
        logits = self._logits(hidden[:, 0])[: len(active)]
        return next_tokens(logits, sampling, [row.draw for row in active])

    def _leave(self, candidates: list[_Row], active: list[_Row], cache: SlotCache) -> Iterator[Completion]:
        """Yield those rows that are done; the last active row takes a freed slot."""
        for row in candidates:
            done = self._finish(row)
            if done is None:
                continue
            slot = next(index for index, other in enumerate(active) if other is row)
            if slot != len(active) - 1:
                cache.move(len(active) - 1, slot)
                active[slot] = active[-1]
            active.pop()
            yield done

    def _finish(self, row: _Row) -> Completion | None:
        """The completion, where the row's newest token ends it."""
        finish: Finish | None = None
        reply = row.reply
        if reply[-1] in row.stop_ids:
            finish, reply = "stop", reply[:-1]
        text: str | None = None
        if finish is None and row.stop_strings:
            tail = self.tokenizer.decode(reply[-STOP_WINDOW:], skip_special_tokens=True)
            if any(stop in tail for stop in row.stop_strings):
                finish = "stop"
                whole = self.tokenizer.decode(reply, skip_special_tokens=True)
                text = whole[: min(whole.find(stop) for stop in row.stop_strings if stop in whole)]
        if finish is None and len(row.reply) >= row.room:
            finish = "length"
        if finish is None:
            return None
        if text is None:
            text = self.tokenizer.decode(reply, skip_special_tokens=True)
        return Completion(
            id=row.request.id, text=text, finish=finish, prompt_tokens=len(row.prompt), tokens=len(row.reply)
        )

    def _hidden(self, ids: list[list[int]], positions: list[list[int]], cache: SlotCache) -> torch.Tensor:
        """Last hidden states, (rows, positions, width), of tokens (rows, positions) at these positions."""
        import torch

        out: torch.Tensor = self.model.base_model(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.device),  # unused: one is made for it otherwise
            position_ids=torch.tensor(positions, device=self.device),
            past_key_values=cache,
            use_cache=True,
            slots=cache,
        ).last_hidden_state
        return out

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of (rows, width) hidden states; at least MIN_SLOTS rows are computed, see `_packing`."""
        import torch

        rows = hidden.shape[0]
        if rows < MIN_SLOTS:
            hidden = torch.cat([hidden, hidden.new_zeros(MIN_SLOTS - rows, hidden.shape[1])])
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)[:rows]
        return logits

    # Models with windows or states of their own

    def _generate_padded(self, requests: Iterator[Request], sampling: Sampling) -> Iterator[Completion]:
        """Left-padded batches over the model's own cache, for attention that slots cannot hold."""
        import torch

        from sdft.engines._sampling import next_tokens

        while True:
            batch: list[_Row] = []
            while len(batch) < self.rows_at_once and (request := next(requests, None)) is not None:
                row = self._start(request, sampling)
                if isinstance(row, Completion):
                    yield row
                else:
                    batch.append(row)
            if not batch:
                return
            padded = self.tokenizer.pad(
                {"input_ids": [row.prompt for row in batch]}, padding_side="left", return_tensors="pt"
            ).to(self.device)
            ids, mask, cache = padded["input_ids"], padded["attention_mask"], None
            running = list(batch)
            while running:
                out = self.model(
                    input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1,
                    **self._positions(mask, ids.shape[1]),
                )  # fmt: skip
                cache = out.past_key_values
                tokens = next_tokens(out.logits[:, -1], sampling, [row.draw for row in batch])
                for row, token in zip(batch, tokens, strict=True):
                    if row in running:
                        row.reply.append(token)
                        done = self._finish(row)
                        if done is not None:
                            running.remove(row)
                            yield done
                ids = torch.tensor(tokens, device=self.device)[:, None]
                mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)

    def _positions(self, mask: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return {}
        return {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]}

    # Scoring

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield the natural log-probabilities of each reply's tokens, in order."""
        for item, reply, scores in self._score(items):
            picked = scores.gather(-1, reply[:, None])[:, 0]
            yield TokenLogprobs(id=item.id, tokens=tuple(reply.tolist()), logprobs=tuple(picked.tolist()))

    def distributions(self, items: Iterable[Continuation]) -> Iterator[torch.Tensor]:
        """Yield next-token log-probabilities at each reply token: float32, (reply tokens, vocabulary), in order."""
        for _, _, scores in self._score(items):
            yield scores

    def _score(self, items: Iterable[Continuation]) -> Iterator[tuple[Continuation, torch.Tensor, torch.Tensor]]:
        """Yield each item with its reply's tokens and their distributions. Several items share one pass."""
        import torch

        batch: list[_Scored] = []
        try:
            for item in items:
                row = _Scored(item, self._tokenize(item.prompt), self._tokenize(item.reply))
                problem = self._unscorable(row)
                if batch and (problem or not self._fits(batch, row)):
                    yield from self._score_batch(batch)
                    batch = []
                if problem:
                    raise ScoringError(f"logprobs of '{item.id}': {problem}")
                batch.append(row)
            yield from self._score_batch(batch)
        except torch.OutOfMemoryError:
            raise ScoringError(
                "the device is out of memory while replies are scored; lower evaluate.engine.prefill_tokens"
            ) from None

    def _unscorable(self, row: _Scored) -> str | None:
        if not row.prompt:
            return "the prompt is empty"
        if len(row.ids) > self.context:
            return f"{len(row.prompt)} + {len(row.reply)} tokens exceed the model's {self.context}"
        return None

    @property
    def _prefill_budget(self) -> int:
        return self.settings.prefill_tokens or (1024 if self.device.type == "cpu" else 8192)

    def _fits(self, batch: list[_Scored], row: _Scored) -> bool:
        """Whether one more item goes into a pass: end to end where slots keep them apart, else padded."""
        lengths = [len(other.ids) for other in (*batch, row)]
        if self.uses_slots:
            return sum(lengths) <= self._prefill_budget
        return self.has_plain_head and max(lengths) * len(lengths) <= self._prefill_budget

    def _score_batch(self, batch: list[_Scored]) -> Iterator[tuple[Continuation, torch.Tensor, torch.Tensor]]:
        import torch

        hidden = self._hidden_before_replies(batch) if self.has_plain_head else []
        start = 0
        while start < len(batch):
            end, rows = start + 1, len(batch[start].reply)
            while self.has_plain_head and end < len(batch) and rows + len(batch[end].reply) <= SCORED_ROWS:
                rows += len(batch[end].reply)
                end += 1
            if self.has_plain_head:
                logits = self._logits(torch.cat(hidden[start:end]))
            else:
                [row] = batch
                ids = torch.tensor([row.ids], device=self.device)
                logits = self.model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
            scores = torch.split(logits.float().log_softmax(-1), [len(row.reply) for row in batch[start:end]])
            for row, part in zip(batch[start:end], scores, strict=True):
                yield row.item, torch.tensor(row.reply, dtype=torch.long, device=self.device), part
            start = end

    def _hidden_before_replies(self, batch: list[_Scored]) -> list[torch.Tensor]:
        """Last hidden states, (reply tokens, width) for each item, at the positions that predict its reply."""
        import torch

        lengths = [len(row.ids) for row in batch]
        if self.uses_slots:
            from sdft.engines._slots import SlotCache

            cache = SlotCache(self.model.config, 1, self.dtype, self.device)
            cache.begin_scoring(lengths)
            ids = [token for row in batch for token in row.ids]
            positions = [position for length in lengths for position in range(length)]
            idle = [0] * (MIN_SLOTS - len(ids))  # ignored
            whole = torch.split(self._hidden([ids + idle], [positions + idle], cache)[0, : len(ids)], lengths)
        else:
            width = max(lengths)
            padded = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in batch], device=self.device)
            mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths], device=self.device)
            states = self.model.base_model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
            whole = tuple(state[:length] for state, length in zip(states, lengths, strict=True))
        return [states[len(row.prompt) - 1 : -1] for row, states in zip(batch, whole, strict=True)]


def has_plain_attention(model: Any) -> bool:
    """Whether every layer attends to all earlier positions, so that slots can hold its keys and values."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and set(kinds) == {"full_attention"}
        and not (windowed and not getattr(config, "layer_types", None))
        and not getattr(config, "is_encoder_decoder", False)
        and not getattr(config, "kv_lora_rank", None)  # keys and values of different widths
        and hasattr(config, "num_hidden_layers")
        and hasattr(config, "num_attention_heads")
        and "position_ids" in inspect.signature(model.base_model.forward).parameters
    )
