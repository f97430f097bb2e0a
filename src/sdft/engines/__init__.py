"""Engines: what turns prompts into text. The recipe's `distill.engine` and `evaluate.engine` pick one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sdft.engines.auto import AutoSettings
from sdft.engines.base import (
    Continuation,
    DistributionEngine,
    Engine,
    NotedEngine,
    Request,
    Sampling,
    TokenLogprobs,
)
from sdft.engines.openai import OpenAISettings
from sdft.engines.ray import RaySettings
from sdft.engines.scripted import ScriptedSettings
from sdft.engines.transformers import TransformersSettings
from sdft.engines.vllm import VLLMSettings
from sdft.models import ModelConfig

AnyEngine = Annotated[
    TransformersSettings | VLLMSettings | OpenAISettings | ScriptedSettings | RaySettings | AutoSettings,
    Field(discriminator="name"),
]


def open_engine(settings: AnyEngine, name: str, model: ModelConfig) -> Engine:
    """The engine for `seed` or a tuned model; a server knows each by a name of its own."""
    return settings.open_for(name, model) if isinstance(settings, OpenAISettings) else settings.open(model)


__all__ = [
    "AnyEngine",
    "AutoSettings",
    "Continuation",
    "DistributionEngine",
    "Engine",
    "NotedEngine",
    "OpenAISettings",
    "RaySettings",
    "Request",
    "Sampling",
    "ScriptedSettings",
    "TokenLogprobs",
    "TransformersSettings",
    "VLLMSettings",
    "open_engine",
]
