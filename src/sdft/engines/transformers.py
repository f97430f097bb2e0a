"""Generate with transformers models in this process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdft.records import Settings


class TransformersSettings(Settings):
    """The engine that runs a transformers model in this process."""

    name: Literal["transformers"] = "transformers"
    max_batch_size: int = Field(default=32, ge=1)
    """Rows decoded at once. Fewer are used where memory is short."""
