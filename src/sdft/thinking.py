"""Thinking models: what stands in `<think>…</think>` before a reply is no part of it.

<think>\\n7 less 9 …\\n</think>\\n\\nThe answer is -2.   →   thought "7 less 9 …", reply "The answer is -2."
"""

from __future__ import annotations

from collections.abc import Sequence

from sdft.records import Completion

OPEN, CLOSE = "<think>", "</think>"


def split(text: str, opened: bool = False) -> tuple[str, str]:
    """Thought and reply. `opened`: the prompt has begun the thought already, as some chat templates do.

    A thought that does not end takes all of the text: the reply is empty. One whose beginning is not there, as where a
    server's template has begun it, ends at the first `</think>`.
    """
    body = text.lstrip()
    before, closed, reply = body.partition(CLOSE)
    if body.startswith(OPEN):
        return before.removeprefix(OPEN).strip(), reply.lstrip()
    if opened or (closed and OPEN not in before):
        return before.strip(), reply.lstrip()
    return "", text


def opens(prompt: str) -> bool:
    """Whether a prompt ends inside a thought."""
    return prompt.rstrip().endswith(OPEN)


def ended(prompt: str) -> str:
    """A prompt whose thought, where it ends inside one, is empty and over."""
    return f"{prompt.rstrip()}\n\n{CLOSE}\n\n" if opens(prompt) else prompt


def without(completion: Completion, opened: bool) -> tuple[Completion, str]:
    """A completion without its thought, and the thought."""
    thought, reply = split(completion.text, opened)
    return completion.model_copy(update={"text": reply}), thought


def note(words: Sequence[int], replies: int) -> str:
    """How many replies began with a thought; `words` are those of each thought."""
    return (
        f"{len(words)} of {replies} replies began with a thought (<think>), of {sum(words) / len(words):.0f} words on "
        "average; kept out of the reply (prompt.thinking)"
    )
