"""Generate with vLLM in this process, for GPUs: paged attention, shared prefixes, tensor parallelism.

    engine: {name: vllm, tensor_parallel_size: 2}

Prompts go over as the tokens of the model's own tokenizer, and rows are handed out as they finish. An adapter is
applied beside the weights (LoRA), not merged into them.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sdft.engines._stops import split_stops
from sdft.engines._vllm_worker import OPENER, EndsWithOpener
from sdft.engines.base import Continuation, Request, Sampling, TokenLogprobs
from sdft.errors import EngineError, ModelError, ScoringError
from sdft.models import ModelConfig, adapter_folder, load_tokenizer, pick_dtype, resolve
from sdft.records import Completion, Settings

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
QUEUED = 2
"""Requests that vLLM holds for each row that it decodes, so that a row that finishes leaves no gap."""
ENDING = 10.0
"""Seconds that vLLM's process gets to end by itself."""
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
"""The environment that vLLM is started in, where it says nothing else: no reports to its makers."""


class VLLMSettings(Settings):
    """The engine that runs vLLM in this process, on one GPU or several."""

    name: Literal["vllm"] = "vllm"
    max_batch_size: int = Field(default=256, ge=1)
    """Rows decoded at once, at most; fewer where the cache has no room for them."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one model is split over."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that weights and cache take."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of prompt and reply together. None: the model's context; less of it leaves room for more rows."""
    enable_prefix_caching: bool = True
    """Compute what prompts begin with alike once."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: a quicker start, a slower run."""

    @property
    def queue(self) -> int:
        """Rows that vLLM is given at once."""
        return QUEUED * self.max_batch_size

    @property
    def window(self) -> int:
        """Rows that a replica is given at most: some more, so that it need not wait for the next."""
        return self.queue + max(2, self.max_batch_size // 2)

    def missing(self) -> Iterator[str]:
        """What it takes to run vLLM and is not here, with how to get it."""
        if importlib.util.find_spec("vllm") is None:
            yield (
                "the package vllm is not installed: pip install 'vllm>=0.32', or ask a server of another environment "
                "(`sdft serve`, engine: openai)"
            )

    def open(self, model: ModelConfig) -> VLLMEngine:
        """Start vLLM and load the model. Raises EngineError and ModelError."""
        return VLLMEngine(self, model)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A given reply to be scored, in tokens."""

    id: str
    prompt: list[int]
    reply: list[int]


class VLLMEngine:
    """See VLLMSettings. vLLM's own processes, and the memory they hold, are gone after `close`, and with this one."""

    def __init__(self, settings: VLLMSettings, config: ModelConfig) -> None:
        for problem in settings.missing():
            raise EngineError(f"engine vllm: {problem}")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        os.environ[OPENER] = str(os.getpid())
        self.settings = settings
        folder = resolve(config)
        self.tokenizer: Any = load_tokenizer(config)
        adapter = adapter_folder(config.adapter) if config.adapter else None
        room: dict[str, Any] = {}
        if adapter:
            room = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_room([adapter])}
            room["lora_target_modules"] = lora_modules([adapter])
        with _told(f"engine vllm: {config.name} cannot be loaded"):
            from vllm import LLM
            from vllm.lora.request import LoRARequest

            self._llm: Any = LLM(
                model=str(folder),
                dtype=_dtype(config),
                trust_remote_code=config.trust_remote_code,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_batch_size,
                enable_prefix_caching=settings.enable_prefix_caching,
                enforce_eager=settings.enforce_eager,
                worker_extension_cls=f"{EndsWithOpener.__module__}.{EndsWithOpener.__qualname__}",
                **_whole_prompts(),
                **room,
            )
        self.context: int = self._llm.model_config.max_model_len
        self._lora = LoRARequest(adapter.name, 1, str(adapter.resolve())) if adapter else None
        if self._lora:
            try:
                with _told(f"{config.adapter}: vLLM cannot load the adapter", ModelError):
                    self._llm.llm_engine.add_lora(self._lora)
            except ModelError:
                self.close()
                raise

    def close(self) -> None:
        """End vLLM's process and free its memory."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown(timeout=ENDING)
        self._llm = None
        gc.collect()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion for each request as it finishes. `requests` is read as vLLM has room.

        Raises EngineError where vLLM's process has died; the rows that were handed out are done.
        """
        waiting = iter(requests)
        flying: dict[str, tuple[str, Request]] = {}
        try:
            while True:
                while len(flying) < self.settings.queue and (request := next(waiting, None)) is not None:
                    prompt = self._tokenize(request.prompt)
                    if problem := self._unanswerable(prompt):
                        yield _error(request, len(prompt), problem)
                        continue
                    key, own = self._enqueue(prompt, self._sampling(request, sampling, self.context - len(prompt)))
                    flying[key] = own, request
                if not flying:
                    return
                for output in self._step():
                    _, request = flying.pop(output.request_id)
                    yield _completion(request, output)
        finally:
            self._abort([own for own, _ in flying.values()])

    def logprobs(self, items: Iterable[Continuation]) -> Iterator[TokenLogprobs]:
        """Yield the natural log-probabilities of each reply's tokens, in order.

        A text may be one token shorter than the context at most: vLLM scores a prompt and writes one token more.
        """
        from vllm import SamplingParams

        waiting = iter(items)
        flying: dict[str, tuple[str, _Scored]] = {}
        found: dict[str, TokenLogprobs] = {}
        order: deque[str] = deque()
        try:
            while True:
                while len(order) < self.settings.queue and (item := next(waiting, None)) is not None:
                    row = _Scored(item.id, self._tokenize(item.prompt), self._tokenize(item.reply))
                    tokens = row.prompt + row.reply
                    if problem := "the prompt is empty" if not row.prompt else self._unanswerable(tokens):
                        raise ScoringError(f"logprobs of '{item.id}': {problem}")
                    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
                    key, own = self._enqueue(tokens, params)
                    flying[key] = own, row
                    order.append(key)
                if not order:
                    return
                for output in self._step():
                    _, row = flying.pop(output.request_id)
                    found[output.request_id] = _scores(row, output.prompt_logprobs)
                while order and order[0] in found:
                    yield found.pop(order.popleft())
        finally:
            self._abort([own for own, _ in flying.values()])

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _unanswerable(self, tokens: Sequence[int]) -> str | None:
        if not tokens:
            return "the prompt is empty (0 tokens)"
        if len(tokens) >= self.context:
            return f"the prompt leaves no room in {self.context} tokens ({len(tokens)} tokens)"
        return None

    def _sampling(self, request: Request, sampling: Sampling, room: int) -> Any:
        from vllm import SamplingParams

        ids, strings = split_stops(self.tokenizer, request.stop)
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=request.seed if sampling.temperature > 0 else None,
            max_tokens=min(sampling.max_new_tokens, room),
            stop=list(strings),
            stop_token_ids=sorted(ids),
        )

    def _enqueue(self, tokens: list[int], params: Any) -> tuple[str, str]:
        """Hand a prompt over. Returns the id that its output will have, and vLLM's own, which has a suffix."""
        prompt = {"prompt_token_ids": tokens}
        with _told("engine vllm: it has ended"):
            [own] = self._llm.enqueue([prompt], [params], lora_request=self._lora, use_tqdm=False)
        return own.split("-")[0], own

    def _step(self) -> list[Any]:
        """Compute once for all rows under way. Returns those that have finished."""
        with _told("engine vllm: it has ended"):
            return [output for output in self._llm.llm_engine.step() if output.finished]

    def _abort(self, ids: list[str]) -> None:
        """Take back what nobody waits for any more."""
        if ids and self._llm is not None:
            with _told("engine vllm: it has ended"):
                self._llm.llm_engine.abort_request(ids, internal=True)


def _adapter_configs(adapters: Iterable[Path]) -> Iterator[dict[str, Any]]:
    return (json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) for folder in adapters)


def lora_room(adapters: Iterable[Path]) -> int:
    """The smallest rank that vLLM can make room for and that holds all of these adapters. Raises ModelError."""
    ranks = [1]
    for config in _adapter_configs(adapters):
        ranks += [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    if max(ranks) > LORA_RANKS[-1]:
        raise ModelError(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}; one has {max(ranks)}: merge it first")
    return next(rank for rank in LORA_RANKS if rank >= max(ranks))


def _whole_prompts() -> dict[str, bool]:
    """On a processor vLLM 0.32 dies of a sampled request with a seed whose prompt it reads in several pieces."""
    from vllm.platforms import current_platform

    return {"enable_chunked_prefill": False} if current_platform.device_type == "cpu" else {}


def _dtype(config: ModelConfig) -> str:
    """As `dtype: auto` is meant everywhere. vLLM is asked, which does not open the GPU before its own process has."""
    import torch
    from vllm.platforms import current_platform

    device = current_platform.device_type
    if config.device not in ("auto", device):
        raise EngineError(f"engine vllm: it computes on {device} here, and model.device is {config.device}; set auto")
    if config.dtype != "auto" or device == "cpu":
        return str(pick_dtype(config.dtype, torch.device("cpu"))).removeprefix("torch.")
    return "bfloat16" if torch.bfloat16 in current_platform.supported_dtypes else "float32"


def lora_modules(adapters: Iterable[Path]) -> list[str] | None:
    """The modules that these adapters change, by name, for vLLM to make room in them alone; None where not all tell.

    Not only to be quick: on a processor vLLM 0.32 dies of scoring a prompt where it made room in the output layer, too.
    """
    named: set[str] = set()
    for config in _adapter_configs(adapters):
        modules = config.get("target_modules")
        if not isinstance(modules, list):  # a pattern, or "all-linear"
            return None
        named.update(modules)
    return sorted(named)


@contextmanager
def _told(what: str, kind: type[EngineError] | type[ModelError] = EngineError) -> Iterator[None]:
    """vLLM's errors are of many kinds, and its own process tells the cause on stderr before them."""
    try:
        yield
    except (EngineError, ModelError):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise kind(f"{what} ({first}); what vLLM wrote above says more") from error


def _completion(request: Request, output: Any) -> Completion:
    [written] = output.outputs
    prompt_tokens, tokens = len(output.prompt_token_ids), len(written.token_ids)
    if written.finish_reason not in ("stop", "length"):
        return _error(request, prompt_tokens, f"vLLM broke the reply off ({written.finish_reason})", tokens)
    return Completion(
        id=request.id, text=written.text, finish=written.finish_reason, prompt_tokens=prompt_tokens, tokens=tokens
    )


def _error(request: Request, prompt_tokens: int, why: str, tokens: int = 0) -> Completion:
    return Completion(
        id=request.id, text="", finish="error", prompt_tokens=prompt_tokens, tokens=tokens, error=why
    )  # fmt: skip


def _scores(row: _Scored, given: Sequence[Any]) -> TokenLogprobs:
    """Position i of `given` holds the token that stands there, by id, and maybe likelier ones."""
    first = len(row.prompt)
    picked = tuple(float(given[first + i][token].logprob) for i, token in enumerate(row.reply))
    return TokenLogprobs(id=row.id, tokens=tuple(row.reply), logprobs=picked)
