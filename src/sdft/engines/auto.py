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

        `wanted` is what it has to give; vLLM gives no whole next-token distributions. A model that one GPU does not
        hold is split by vLLM over as many as it can be; each is taken to have as much free as the first.
        """
        device = guess_device(model.device)
        free, shape = free_memory(device), local_shape(model)
        gpus = gpu_count() if device == "cuda" else 1
        fast = device == "cuda" and importlib.util.find_spec("vllm") is not None
        rows = MOST_ROWS[device]
        room = "memory not known"
        if free is not None and shape is not None:
            weights = shape.weight_bytes(model.dtype, device)
            room = f"weights take {weights / GIB:.1f} of {free / GIB:.1f} GiB free"
            if weights > USABLE * free:
                parts = [n for n in range(2, gpus + 1) if shape.splits_over(n) and weights <= USABLE * free * n]
                if fast and parts and wanted == "replies":
                    others = f", {gpus - parts[-1]} stay idle" if gpus > parts[-1] else ""
                    return (
                        VLLMSettings(tensor_parallel_size=parts[-1]),
                        f"vllm, split over {parts[-1]} GPUs{others}; {room} on each",
                    )
                raise EngineError(
                    f"engine auto: {model.name} does not fit: {weights / GIB:.1f} GiB of weights, {free / GIB:.1f} GiB "
                    f"free on {device}; take a smaller model, or one on a server (engine: openai)"
                )
            rows = rows_that_fit(USABLE * free - weights, shape.cache_bytes(model.dtype, device), device)
        if fast and wanted == "replies":
            idle = (
                f"; {gpus - 1} of {gpus} GPUs stay idle: engine ray with vllm inside, or transformers with its "
                "replicas, would use them"
            )
            return VLLMSettings(), f"vllm on cuda; {room}{idle if gpus > 1 else ''}"
        if fast:
            room += "; drift needs whole distributions, which vllm does not give"
        where = f"{gpus} GPUs, a replica on each" if gpus > 1 else device
        return TransformersSettings(max_batch_size=rows), f"transformers on {where}, {rows} rows at once; {room}"

    def open(self, model: ModelConfig) -> Engine:
        """Choose, and load the model. Raises EngineError and ModelError."""
        return self.choose(model)[0].open(model)
