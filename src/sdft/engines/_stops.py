"""What ends a reply: strings that are one token of the vocabulary, and those that are looked for in the text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def split_stops(tokenizer: Any, stops: Iterable[str]) -> tuple[frozenset[int], tuple[str, ...]]:
    """The ids of those that are one token, such as `<|im_end|>`, and the others, as text."""
    single = {stop: tokenizer.convert_tokens_to_ids(stop) for stop in stops}
    known = {stop: i for stop, i in single.items() if i is not None and i != tokenizer.unk_token_id}
    return frozenset(known.values()), tuple(stop for stop in single if stop not in known)
