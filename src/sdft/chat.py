"""A tuned model against its seed, a token at a time each: `sdft chat`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from sdft import thinking
from sdft.engines import Sampling
from sdft.models import ModelConfig, load_model, load_tokenizer
from sdft.prompts import Prompt, PromptConfig, Renderer
from sdft.records import Example, Message

SHARES = 24
"""Tokens at the end of a reply that are searched for a stop string."""


class Speaker:
    """One model with its own conversation."""

    def __init__(self, config: ModelConfig, prompt: PromptConfig, sampling: Sampling, seed: int) -> None:
        self.model: Any = load_model(config)
        self.tokenizer: Any = load_tokenizer(config)
        self.renderer = Renderer(prompt, self.tokenizer)
        self.sampling, self.draw = sampling, random.Random(seed)
        self.keeps_thoughts = prompt.thinking == "keep"
        self.turns: list[Message] = []
        eos = self.model.generation_config.eos_token_id
        self.end_ids = {self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
        self.context: int = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30

    def reply(self, text: str) -> Iterator[str]:
        """Answer the user's text: yields the reply so far, a token more each time. It joins the conversation.

        What a thinking model thinks is told by its length alone, and does not join.
        """
        self.turns.append(Message(role="user", content=text))
        said = ""
        try:
            prompt = self._prompt()
            opened = thinking.opens(prompt.text)
            for text in self._stream(prompt):
                thought, said = ("", text) if self.keeps_thoughts else thinking.split(text, opened)
                yield f"(thought of {len(thought.split())} words)\n{said}" if thought else said
        finally:  # a reply that was broken off stands as far as it came; an empty one would not render
            if said.strip():
                self.turns.append(Message(role="assistant", content=said.strip()))
            else:
                self.turns.pop()

    def forget(self) -> None:
        """Begin a new conversation."""
        self.turns.clear()

    def _prompt(self) -> Prompt:
        """The conversation as the model gets it; its oldest turns are left out where it does not fit."""
        while True:
            prompt = self.renderer.infer(Example(id="chat", messages=tuple(self.turns), reference=""))
            room = self.context - self.sampling.max_new_tokens
            if len(self.turns) == 1 or len(self._ids(prompt.text)) <= room:
                return prompt
            del self.turns[:2]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _stream(self, prompt: Prompt) -> Iterator[str]:
        import torch

        from sdft.engines._sampling import next_tokens

        ids = self._ids(prompt.text)
        feed, cache = ids, None
        reply: list[int] = []
        for _ in range(min(self.sampling.max_new_tokens, self.context - len(ids))):
            with torch.inference_mode():
                out = self.model(
                    input_ids=torch.tensor([feed], device=self.model.device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                [token] = next_tokens(out.logits[:, -1], self.sampling, [self.draw])
            if token in self.end_ids:
                return
            reply.append(token)
            feed, cache = [token], out.past_key_values
            text: str = self.tokenizer.decode(reply, skip_special_tokens=True)
            ended = [text.index(stop) for stop in prompt.stop if stop in text]
            yield text[: min(ended)] if ended else text.removesuffix("\N{REPLACEMENT CHARACTER}")
            if ended:
                return


def answers(speakers: Mapping[str, Speaker], text: str) -> Iterator[dict[str, str]]:
    """What each speaker has said so far, in turns of a token each, until all have ended."""
    streams = {name: speaker.reply(text) for name, speaker in speakers.items()}
    said = dict.fromkeys(streams, "")
    try:
        while streams:
            for name, stream in list(streams.items()):
                token = next(stream, None)
                if token is None:
                    del streams[name]
                else:
                    said[name] = token
            yield dict(said)
    finally:
        for stream in streams.values():
            stream.close()  # type: ignore[attr-defined]
