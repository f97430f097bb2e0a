"""Engines: what turns prompts into text. The recipe's `distill.engine` and `evaluate.engine` pick one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sdft.engines.base import (
    Continuation,
    DistributionEngine,
    Engine,
    Request,
    Sampling,
    TokenLogprobs,
)
from sdft.engines.openai import OpenAISettings
from sdft.engines.scripted import ScriptedSettings
from sdft.engines.transformers import TransformersSettings

AnyEngine = Annotated[TransformersSettings | OpenAISettings | ScriptedSettings, Field(discriminator="name")]

__all__ = [
    "AnyEngine",
    "Continuation",
    "DistributionEngine",
    "Engine",
    "OpenAISettings",
    "Request",
    "Sampling",
    "ScriptedSettings",
    "TokenLogprobs",
    "TransformersSettings",
]
