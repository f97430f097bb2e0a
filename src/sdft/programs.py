"""The program in a reply.

Sure! Here it is:          a prose reply with a fenced block, with or without its language,
```python                  or several of them: the first that defines the function
def add(a, b):
    return a + b
```
def add(a, b): …           bare code, with prose before or after it
    return a + b           a bare body, which goes on from the signature and docstring of the prompt
"""

from __future__ import annotations

import ast
import re
import textwrap
import threading
import warnings

PYTHON = ("", "python", "python3", "py", "python-3")
FENCE = re.compile(r"^ {0,12}(`{3,}|~{3,})[ \t]*([\w.+-]*)[^\n`]*$")
OPENING = re.compile(r"(?:from|import|def|class|async def)\b|@|\w+ *=")
_QUIETLY = threading.Lock()
"""Warnings are silenced for a whole process at once; replies are judged by several threads."""


def find_program(reply: str, name: str, prompt: str = "") -> str | None:
    """The source in a reply that defines `name`; None where there is none that parses.

    `prompt` is what the reply may go on from: source up to and with the docstring of the function to be written.
    A body that is given is returned behind it.
    """
    first = reply.lstrip("\r\n").partition("\n")[0]
    if prompt and first[:1] in (" ", "\t") and first.strip():  # nothing but a body begins like this
        found = _continued(prompt, reply)
        if found is not None:
            return found
    blocks = fenced(reply)
    for text in blocks or [reply]:
        found = _defining(text, name)
        if found is not None:
            return found
    for text in blocks or [reply] if prompt else []:
        found = _continued(prompt, text)
        if found is not None:
            return found
    return None


def fenced(reply: str) -> list[str]:
    """The contents of a reply's blocks of Python, or of all its blocks where none is; the last may be cut off."""
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in reply.splitlines():
        match = FENCE.match(line)
        if not fence and match:
            fence = match[1]
            blocks.append((match[2].lower(), []))
        elif fence and match and match[1].startswith(fence) and not match[2]:
            fence = ""
        elif fence:
            blocks[-1][1].append(line)
    python = [lines for language, lines in blocks if language in PYTHON]
    return [textwrap.dedent("\n".join(lines)) for lines in python or [lines for _, lines in blocks]]


def _defining(text: str, name: str) -> str | None:
    """The longest run of whole lines, from one that can open a program, that parses and defines `name`."""
    lines = text.expandtabs(4).splitlines()
    starts = [number for number, line in enumerate(lines) if OPENING.match(line)]
    # Prose can open like code ("from the definition …"): the next line that may is tried then.
    for start in starts[:20]:
        found = _longest(lines[start:])
        if found is not None and name in _defined(found):
            return found
    return None


def _continued(prompt: str, text: str) -> str | None:
    """The prompt with a body behind it, which may have lost the indentation of its first line, or of all."""
    lines = text.rstrip().strip("\r\n").splitlines()
    if not lines:
        return None
    if lines[0][:1] in (" ", "\t"):
        bodies = [lines]
    else:
        bodies = [["    " + lines[0], *lines[1:]], ["    " + line if line else line for line in lines]]
    whole = prompt.rstrip().splitlines()
    programs = []
    for body in bodies:
        end = next((number for number, line in enumerate(body) if line.strip() and line[0] not in " \t"), len(body))
        found = _longest([*whole, *body[:end]])
        if found is not None and len(found.splitlines()) > len(whole):
            programs.append(found)
    return max(programs, key=lambda found: found.count("\n"), default=None)


def _longest(lines: list[str]) -> str | None:
    """As many of these lines as parse: cut where Python sees an error, until it sees none."""
    end = len(lines)
    while end > 0:
        source = "\n".join(lines[:end])
        found = _parse(source)
        if isinstance(found, ast.Module):
            return source
        end = min(end, found or 1) - 1
    return None


def _defined(source: str) -> set[str]:
    """The names that a source's top level gives to functions, classes and values."""
    tree = _parse(source)
    names: set[str] = set()
    for node in tree.body if isinstance(tree, ast.Module) else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _parse(source: str) -> ast.Module | int | None:
    """The tree, or the line of the first error, or None for what is no text of a program at all."""
    try:
        with _QUIETLY, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model's escape sequences
            return ast.parse(source)
    except SyntaxError as error:
        return error.lineno
    except (ValueError, MemoryError, RecursionError):  # null bytes, lone surrogates, endless nesting
        return None
