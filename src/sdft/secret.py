"""What may be a key: no recipe may hold one, and no message shows one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FORMS = r"\b(?:sk[-_]|hf_|gsk_|xai-|[pr]k[-_])[\w-]{6,}"
"""The usual forms of keys, to be read without regard to case."""
VALUE = re.compile(rf"{FORMS}|^\s*bearer\s+\S+\s*$", re.IGNORECASE)
NAME = re.compile(
    r"(?:.*_)?(?:auth|authorization|bearer|secrets?|passwords?|passwd|credentials?)"
    r"|(?:.*_)?(?:access|api|auth|private|secret|subscription)_?keys?"
    r"|token|(?:.*_)?(?:access|api|auth|bearer|client|hf|id|refresh|security|service|session|user)_?token"
)
"""The whole of a name, as snake case: `max_tokens` and `eos_token` name no key."""
BORDERS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-\s.]+")
"""Where the words of a name meet: `apiKey`, `x-api-key`."""


def is_key(text: str) -> bool:
    """Whether a text holds what looks like a key."""
    return VALUE.search(text) is not None


def hidden(text: str) -> str:
    """The text with asterisks for what looks like a key."""
    return re.sub(FORMS, "*****", text, flags=re.IGNORECASE)


def where_a_key_is(value: Any, way: str = "") -> str | None:
    """The dotted way to the first thing that is called as keys are or looks like one; None where there is none.

    What stands under `properties` is a JSON schema, in which a name names no value.
    """
    if isinstance(value, str):
        return way if is_key(value) else None
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if is_key(str(name)):
                return way or "its names"
            below = f"{way}.{name}".lstrip(".")
            schema = way.rpartition(".")[2] == "properties" and isinstance(inner, Mapping)
            if not schema and NAME.fullmatch(BORDERS.sub("_", str(name)).lower()):
                return below
            if (found := where_a_key_is(inner, below)) is not None:
                return found
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            if (found := where_a_key_is(inner, f"{way}.{index}")) is not None:
                return found
    return None
