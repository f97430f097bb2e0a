"""The engine `auto`: what is installed here and fits the hardware, said in one line."""

from __future__ import annotations

from typing import Literal

from sdft.engines._replicas import DistributionReplicas
from sdft.engines.transformers import TransformersEngine, TransformersSettings
from sdft.errors import EngineError
from sdft.memory import GIB, free_memory, guess_device, local_shape
from sdft.models import ModelConfig
from sdft.records import Settings

USUAL_TOKENS = 1536
"""Of prompt and reply together, for which room in the KV cache is reckoned."""
USABLE = 0.8
"""Share of the free memory that weights and cache may take."""
MOST_ROWS = {"cpu": 32, "mps": 32, "cuda": 256}


class AutoSettings(Settings):
    """Whatever engine is installed and fits the hardware; the run's own recipe names the one that was taken."""

    name: Literal["auto"] = "auto"

    def choose(self, model: ModelConfig) -> tuple[TransformersSettings, str]:
        """The engine for a model here, and why, in one line. Loads nothing. Raises EngineError where none fits."""
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
            fit = int((USABLE * free - weights) / (USUAL_TOKENS * shape.cache_bytes(model.dtype, device)))
            rows = max(1, min(rows, fit))
            room = f"weights take {weights / GIB:.1f} of {free / GIB:.1f} GiB free"
        return TransformersSettings(max_batch_size=rows), f"transformers on {device}, {rows} rows at once; {room}"

    def open(self, model: ModelConfig) -> TransformersEngine | DistributionReplicas:
        """Choose, and load the model. Raises EngineError and ModelError."""
        return self.choose(model)[0].open(model)
