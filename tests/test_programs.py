"""Taking the program out of a reply."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft.programs import fenced, find_program

PROMPT = (
    'import math\n\n\ndef root(x: float) -> float:\n    """ The square root.\n    >>> root(4.0)\n    2.0\n    """\n'
)
BODY = "    if x < 0:\n        return 0.0\n    return math.sqrt(x)\n"
DEDENTED = "if x < 0:\n    return 0.0\nreturn math.sqrt(x)\n"
WHOLE = "import math\n\ndef root(x):\n" + BODY
CALL = "```python\nprint(root(4.0))\n```"


def result(reply: str, prompt: str = PROMPT) -> float | None:
    source = find_program(reply, "root", prompt)
    if source is None:
        return None
    namespace: dict[str, object] = {}
    exec(compile("import math\n" + source, "<test>", "exec"), namespace)
    return namespace["root"](9.0)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    "reply",
    [
        BODY,
        "\n" + BODY + "\n\nprint(root(2))\n",
        BODY.lstrip(),
        DEDENTED,
        DEDENTED + "\nThat is all there is to it.",
        BODY + "\n\ndef root(x):\n    return 'another'\n",
        BODY.replace("\n", "\r\n"),
        PROMPT + BODY,
        WHOLE,
        f"Here is the function.\n\n{WHOLE}\nIt doesn't (quite) work for complex numbers.",
        f"from the definition we see:\n\n{WHOLE}",
        f"Sure!\n```python\n{WHOLE}```\nDon't use it.",
        f"Sure!\n```\n{WHOLE}```",
        f"~~~py\n{WHOLE}~~~",
        f"1. Like this:\n   ```python\n{''.join('   ' + line for line in WHOLE.splitlines(True))}   ```\n",
        f"```python\n{WHOLE}",
        f"```python\n{BODY}```",
        f"```python\n{DEDENTED}```",
        f"```bash\npip install math\n```\n\n```Python\n{WHOLE}```\n\n{CALL}",
        f"{CALL}\n\n```python\n{WHOLE}```",
        f"```python\n{WHOLE}\nprint(root(\n```",
        "root = lambda x: x ** 0.5",
        "```python\nimport math\n\nroot = math.sqrt\n```",
        "```python\n@staticmethod\ndef helper(x): return x\ndef root(x: float):\n\treturn x ** .5\n```",
    ],
)
def test_every_form_of_reply_gives_the_program(reply: str) -> None:
    assert result(reply) == 3.0


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "\n \n",
        "I'm sorry, but I can't do that.",
        "```python\n```",
        "def root(x",
        "a\0b",
        "def f(x): return x",
        "(" * 9999,
    ],
)
def test_a_reply_without_a_program_gives_none(reply: str) -> None:
    assert result(reply, prompt="") is None
    if "def" not in reply:
        assert result(reply) is None


def test_what_follows_a_body_is_not_part_of_it() -> None:
    source = find_program(BODY + "\nexit()\n", "root", PROMPT)
    assert source is not None and "exit" not in source and source.startswith(PROMPT.rstrip())


def test_blocks_of_other_languages_count_only_where_there_is_no_python() -> None:
    assert fenced("```text\na\n```\n```python\nb\n```") == ["b"]
    assert fenced("```text\na\n```") == ["a"]
    assert fenced("````\n```\nx\n```\n````") == ["```\nx\n```"]
    assert fenced("Use `x` or ``` in a line.") == []


@given(st.text(alphabet=st.sampled_from("`~ \n\tdefrot(x):=1#\"'\\py\ud800\0@"), max_size=200))
def test_any_text_gives_a_program_that_parses_or_none(reply: str) -> None:
    for prompt in ("", PROMPT):
        source = find_program(reply, "root", prompt)
        assert source is None or ast.parse(source)
