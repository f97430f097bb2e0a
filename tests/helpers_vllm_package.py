"""A small package that stands in for vLLM and writes down what it is given."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from types import ModuleType, SimpleNamespace
from typing import Any


class FakeLLM:
    """As vLLM's `LLM`: it finishes the shortest prompt of those it holds, one a step, and says how many it held."""

    opened: list[FakeLLM] = []
    seconds = 0.0
    """That a step takes."""
    apart = False
    """Whether it has a process of its own beside, as the real one does."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.held: dict[str, tuple[list[int], Any]] = {}
        self.most = self.count = 0
        self.params: list[Any] = []
        self.loras: list[Any] = []
        self.dies_after = 10**9
        self.is_shut = False
        self.model_config = SimpleNamespace(max_model_len=options["max_model_len"] or 512)
        core = SimpleNamespace(shutdown=self._shutdown)
        self.llm_engine = SimpleNamespace(
            step=self._step, add_lora=self._add_lora, abort_request=self._abort, engine_core=core
        )
        self.core: Any = None
        if self.apart:
            self.core = multiprocessing.get_context("fork").Process(
                target=_be_core, args=(options["worker_extension_cls"],)
            )
            self.core.start()
        FakeLLM.opened.append(self)

    def enqueue(self, prompts: list[Any], params: list[Any], *, lora_request: Any, use_tqdm: bool) -> list[str]:
        assert not use_tqdm
        key = f"{self.count}-a1b2c3d4"
        self.count += 1
        self.held[key] = prompts[0]["prompt_token_ids"], params[0]
        self.params.append(params[0])
        self.loras.append(lora_request)
        self.most = max(self.most, len(self.held))
        return [key]

    def _step(self) -> list[Any]:
        time.sleep(self.seconds)
        if self.count > self.dies_after:
            raise RuntimeError("EngineCore encountered an issue\nsee above")
        key = min(self.held, key=lambda key: len(self.held[key][0]))
        ids, params = self.held.pop(key)
        scores = [None, *({token: SimpleNamespace(logprob=-token / 10)} for token in ids[1:])]
        reason = "abort" if len(ids) == 13 else "length" if params.max_tokens < 3 else "stop"
        reply = SimpleNamespace(text=f"{len(ids)}", token_ids=[5] * params.max_tokens, finish_reason=reason)
        done = SimpleNamespace(
            request_id=key.split("-")[0], finished=True, outputs=[reply], prompt_token_ids=ids, prompt_logprobs=scores
        )
        return [SimpleNamespace(finished=False), done]

    def _add_lora(self, request: Any) -> None:
        if "misfit" in request.path:
            raise ValueError("rank does not fit")

    def _abort(self, keys: list[str], internal: bool) -> None:
        assert internal
        for key in keys:
            del self.held[key]

    def _shutdown(self, timeout: float) -> None:
        self.is_shut = True
        if self.core:
            self.core.kill()
            self.core.join()


def _be_core(extension: str) -> None:
    """The engine core's process, with the worker in it, as with one GPU."""
    module, _, name = extension.rpartition(".")
    type("Worker", (getattr(importlib.import_module(module), name),), {})()
    time.sleep(300)


def modules() -> dict[str, ModuleType]:
    """What `sys.modules` has to hold for `import vllm` to give the small one."""
    import torch

    platform = SimpleNamespace(device_type="cuda", supported_dtypes=[torch.bfloat16, torch.float32])
    params = type("SamplingParams", (SimpleNamespace,), {})
    lora = type("LoRARequest", (), {"__init__": lambda self, name, number, path: vars(self).update(path=path)})
    members: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": FakeLLM, "SamplingParams": params},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lora},
        "vllm.platforms": {"current_platform": platform},
    }
    made = {}
    for name, holds in members.items():
        made[name] = ModuleType(name)
        made[name].__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        made[name].__dict__.update(holds)
    return made
