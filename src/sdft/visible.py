"""Text of models and datasets with its hidden characters made visible, for terminals and pages."""

from __future__ import annotations

import re

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that show nothing, or that change how their neighbours show: control characters but tab and
newline, bidirectional controls, lone surrogates, tags. Joiners stay: emoji and several scripts need them."""


def visible(text: str) -> str:
    """The text with every hidden character replaced by a visible name such as `␀` or `[U+202E]`."""
    return HIDDEN.sub(_name, text.replace("\r\n", "\n"))


def _name(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"[U+{code:04X}]"
