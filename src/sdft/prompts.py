"""Example → the text that the model continues."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdft.records import Settings


class PromptConfig(Settings):
    """How examples become prompts.

    `style: chat` puts texts into the model's own chat template; `style: verbatim` uses whole prompt templates
    such as the reference implementation's. Each of `distill`, `train` and `infer` is a name from
    `sdft list templates` or a jinja string with `instruction`, `reference` (distill only) and `system`.
    """

    style: Literal["chat", "verbatim"] = "chat"
    system: str | None = None
    """System text. None: the example's own; in verbatim style: the example's own, else the template's."""
    distill: str = "using"
    """The prompt that shows instruction and reference and asks for a rewrite."""
    train: str = "plain"
    """The plain prompt to train with."""
    infer: str | None = None
    """The plain prompt for evaluation; None: the same as `train`."""
    reply_prefix: str = ""
    """Text that begins the rewrite for the model; it is not part of the rewrite. Chat style; verbatim
    templates bring their own."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Prompts longer than this are over-long. None: what the model's context leaves after the reply."""
    on_long: Literal["error", "skip", "truncate_left"] = "error"
    """What to do with over-long prompts; they are never cut silently."""
