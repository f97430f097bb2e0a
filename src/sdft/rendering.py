"""Prompts that fit: a renderer, and the room that the model's context leaves it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdft.engines import AnyEngine, OpenAISettings, RaySettings, Sampling, ScriptedSettings
from sdft.models import ModelConfig, load_tokenizer, resolve
from sdft.prompts import Prompt, PromptConfig, Renderer, TurnsRenderer
from sdft.records import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Prompter:
    """Renders prompts and holds them to the model's context. None stands for a prompt that is to be skipped."""

    renderer: Renderer
    context: int | None
    """Tokens of prompt and reply together; None: no model is there to count them."""
    added: str = ""
    """What a server puts before every prompt by itself; it is taken off ours."""

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
        fitting = prompt if self.context is None else self.renderer.fit(prompt, self.context - sampling.max_new_tokens)
        return fitting and replace(fitting, text=fitting.text.removeprefix(self.added))


def open_prompter(prompt: PromptConfig, engine: AnyEngine, model: ModelConfig) -> Prompter:
    """The prompter for a model. Raises ModelError.

    The scripted engine has no model; a chat style still takes the model's own chat template. A server takes turns as
    they are, and no model is looked for; where it takes text, the model's tokenizer is needed, but not its weights.
    """
    engine = engine.inner if isinstance(engine, RaySettings) else engine
    if isinstance(engine, ScriptedSettings):
        return Prompter(Renderer(prompt, load_tokenizer(model) if prompt.style == "chat" else None), None)
    served = isinstance(engine, OpenAISettings)
    if not needs_tokenizer(prompt, engine):
        return Prompter(TurnsRenderer(prompt), None)
    config = json.loads((resolve(model, weights=not served) / "config.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(model, weights=not served)
    context = config.get("max_position_embeddings") or UNBOUNDED
    return Prompter(Renderer(prompt, tokenizer), context, _added_bos(tokenizer) if served else "")


def needs_tokenizer(prompt: PromptConfig, engine: AnyEngine) -> bool:
    """Whether prompts for this engine are written with the model's tokenizer."""
    engine = engine.inner if isinstance(engine, RaySettings) else engine
    if isinstance(engine, OpenAISettings):
        return engine.wants_text(prompt.style)
    return prompt.style == "chat" or not isinstance(engine, ScriptedSettings)


def _added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS, where the tokenizer, and so a server, puts it before every text."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if tokenizer.bos_token and ids[:1] == [tokenizer.bos_token_id] else ""
