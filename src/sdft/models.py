"""Find and load models, tokenizers and adapters. Weights are read as safetensors or GGUF, never as pickles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdft.errors import ModelError
from sdft.records import Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelConfig(Settings):
    """Which model, and how it is loaded. In a recipe, a plain string stands for `{name: ...}`."""

    name: str
    """A hub name, a folder as `save_pretrained` writes it, or a .gguf file."""
    revision: str | None = None
    """Hub revision: a branch, tag or commit."""
    adapter: str | None = None
    """A PEFT adapter folder or hub name to put on top."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device computes it natively, else float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trust_remote_code: bool = False
    """Run the Python code that a model's repository carries. Off unless you have read that code."""
