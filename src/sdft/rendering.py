"""Prompts that fit: a renderer, and the room that the model's context leaves it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from sdft.engines import AnyEngine, Sampling, ScriptedSettings
from sdft.models import ModelConfig, load_tokenizer, resolve
from sdft.prompts import Prompt, PromptConfig, Renderer
from sdft.records import Example, Message

UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Prompter:
    """Renders prompts and holds them to the model's context. None stands for a prompt that is to be skipped."""

    renderer: Renderer
    context: int | None
    """Tokens of prompt and reply together; None: no model is there to count them."""

    def distill(self, example: Example, sampling: Sampling) -> Prompt | None:
        """The prompt for a rewrite. Raises PromptError."""
        return self._fit(self.renderer.distill(example), sampling)

    def infer(self, example: Example, template: str | None, sampling: Sampling) -> Prompt | None:
        """The prompt for evaluation. Raises PromptError."""
        return self._fit(self.renderer.infer(example, template), sampling)

    def shared(self, render: Callable[[Example], Prompt]) -> str:
        """The text that every prompt of one kind begins with, whatever the example: template and system text."""
        texts = []
        for word in ("0", "Z"):
            example = Example(id="", messages=(Message(role="user", content=word),), reference=word)
            texts.append(render(example).text)
        return os.path.commonprefix(texts)  # noqa: RUF071 - of characters, as is wanted

    def _fit(self, prompt: Prompt, sampling: Sampling) -> Prompt | None:
        return prompt if self.context is None else self.renderer.fit(prompt, self.context - sampling.max_new_tokens)


def open_prompter(prompt: PromptConfig, engine: AnyEngine, model: ModelConfig) -> Prompter:
    """The prompter for a model. Raises ModelError.

    The scripted engine has no model; a chat style still takes the model's own chat template.
    """
    if isinstance(engine, ScriptedSettings):
        return Prompter(Renderer(prompt, load_tokenizer(model) if prompt.style == "chat" else None), None)
    config = json.loads((resolve(model) / "config.json").read_text(encoding="utf-8"))
    return Prompter(Renderer(prompt, load_tokenizer(model)), config.get("max_position_embeddings") or UNBOUNDED)
