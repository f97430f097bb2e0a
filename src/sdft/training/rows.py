"""Prompt and reply → token ids, with the loss on the reply alone.

prompt  <|im_start|>user\\nName a dish.<|im_end|>\\n<|im_start|>assistant\\n    label -100 for each token
reply   Pho.<|im_end|>                                                        label = token id
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from sdft.errors import DataError
from sdft.records import Choice
from sdft.rundir import seed_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that carries no loss."""
CHUNK = 1000
"""Pairs tokenised at once."""


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One reply to learn, and the prompt it answers."""

    id: str
    prompt: str
    """The whole text before the reply, special tokens written out."""
    reply: str
    end: str
    """What ends the reply: EOS, or the template's end of turn. It is learnt too."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokenised pairs, in their order. `input_ids` and `labels` hold one list for each row."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    truncated: int
    """Rows whose reply was cut at `max_length`."""
    skipped: int
    """Pairs left out: longer than `max_length`, or with nothing of their reply within it."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.input_ids))

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORED for labels in self.labels for label in labels[1:])


def replies_to_learn(choices: Iterable[Choice], fraction: float, seed: int) -> dict[str, str]:
    """Example id → the reply that the method sdft learns, with this share of the rewrites.

    Rewritten rows are ranked by a hash of seed and id, and the first of them taken: at a larger fraction the same
    rows and more.
    """
    choices = list(choices)
    ranked = sorted(
        (seed_for(seed, "distilled_fraction", choice.example_id), choice.example_id)
        for choice in choices
        if choice.source == "rewrite"
    )
    taken = {example_id for _, example_id in ranked[: round(fraction * len(ranked))]}
    return {c.example_id: c.response if c.example_id in taken else c.original for c in choices}


def pairs_sha256(pairs: Iterable[TrainingPair]) -> str:
    """A hash of everything that is trained on, in order."""
    sha = hashlib.sha256()
    for pair in pairs:
        sha.update(json.dumps([pair.id, pair.prompt, pair.reply, pair.end], ensure_ascii=False).encode() + b"\n")
    return sha.hexdigest()


def tokenize(
    pairs: Iterable[TrainingPair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_long: Literal["error", "skip", "truncate"],
) -> Rows:
    """Tokenise prompt and reply each for itself, as the model meets them when it generates.

    A row longer than `max_length` tokens raises DataError, is left out, or loses the end of its reply. A row that
    would carry no loss is left out. Raises DataError where no row is left.
    """
    rows, long = Rows([], [], 0, 0), []
    total = truncated = skipped = 0
    waiting = iter(pairs)
    while chunk := list(islice(waiting, CHUNK)):
        total += len(chunk)
        prompts = tokenizer([pair.prompt for pair in chunk], add_special_tokens=False, verbose=False)["input_ids"]
        replies = tokenizer([p.reply + p.end for p in chunk], add_special_tokens=False, verbose=False)["input_ids"]
        for pair, prompt, reply in zip(chunk, prompts, replies, strict=True):
            ids, labels = prompt + reply, [IGNORED] * len(prompt) + reply
            if len(ids) > max_length:
                long.append(f"{pair.id} ({len(ids)})")
            if (len(ids) > max_length and on_long == "skip") or not any(
                label != IGNORED for label in labels[1:max_length]
            ):
                skipped += 1
                continue
            truncated += len(ids) > max_length
            rows.input_ids.append(ids[:max_length])
            rows.labels.append(labels[:max_length])
    if long and on_long == "error":
        shown = ", ".join(long[:5]) + (f" and {len(long) - 5} more" if len(long) > 5 else "")
        raise DataError(
            f"longer than train.max_length = {max_length} tokens, {len(long)} of {total} examples: {shown}; raise it, "
            "or set train.on_long to truncate or skip"
        )
    if not rows.input_ids:
        raise DataError(
            f"no example is left to train on: {skipped} were skipped, as none of their reply stands within "
            f"train.max_length = {max_length} tokens"
        )
    return Rows(rows.input_ids, rows.labels, truncated, skipped)
