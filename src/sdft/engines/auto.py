"""The engine `auto`: what is installed here and fits the hardware, said in one line."""

from __future__ import annotations

import importlib.util
from typing import Literal

from sdft.engines.base import Engine
from sdft.engines.transformers import TransformersSettings
from sdft.engines.vllm import VLLMSettings
from sdft.errors import EngineError
from sdft.memory import GIB, MOST_ROWS, USABLE, free_memory, gpu_count, guess_device, local_shape, rows_that_fit
from sdft.models import ModelConfig
from sdft.records import Settings


class AutoSettings(Settings):
    """Whatever engine is installed and fits the hardware; the run's own recipe names the one that was taken."""

    name: Literal["auto"] = "auto"

    def choose(
        self, model: ModelConfig, wanted: Literal["replies", "distributions"] = "replies"
    ) -> tuple[TransformersSettings | VLLMSettings, str]:
        """The engine for a model here, and why, in one line. Loads nothing. Raises EngineError where none fits.

        `wanted` is what it has to give; vLLM gives no whole next-token distributions.
        """
        device = guess_device(model.device)
        free, shape = free_memory(device), local_shape(model)
        rows = MOST_ROWS[device]
        room = "memory not known"
        if free is not None and shape is not None:
            weights = shape.weight_bytes(model.dtype, device)
            if weights > USABLE * free:
                raise EngineError(
                    f"engine auto: {model.name} does not fit: {weights / GIB:.1f} GiB of weights, {free / GIB:.1f} GiB "
                    f"free on {device}; take a smaller model, or one on a server (engine: openai)"
                )
            rows = rows_that_fit(USABLE * free - weights, shape.cache_bytes(model.dtype, device), device)
            room = f"weights take {weights / GIB:.1f} of {free / GIB:.1f} GiB free"
        if device == "cuda" and importlib.util.find_spec("vllm") is not None:
            if wanted == "replies":
                return VLLMSettings(), f"vllm on cuda; {room}"
            room += "; drift needs whole distributions, which vllm does not give"
        gpus = gpu_count() if device == "cuda" else 1
        where = f"{gpus} GPUs, a replica on each" if gpus > 1 else device
        return TransformersSettings(max_batch_size=rows), f"transformers on {where}, {rows} rows at once; {room}"

    def open(self, model: ModelConfig) -> Engine:
        """Choose, and load the model. Raises EngineError and ModelError."""
        return self.choose(model)[0].open(model)
