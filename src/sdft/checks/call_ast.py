"""The check `call_ast`: a function call is right where its meaning is."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from sdft.checks.base import PASS, Check, fail
from sdft.records import Example, Verdict

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_CALL_START = re.compile(rf"(?<![\w.])({_NAME})\(")
_MAX_CALLS = 200
_MAX_CALL_CHARS = 3000
"""Bounds for replies that open brackets without end: so many calls are tried, each over so many characters."""


class CallAst(Check):
    """`area(height=5, base=10.0)` is the call `area(base=10, height=5)`: order is free, 10 equals 10.0.

    The first call of the wanted name that parses as Python decides; it may stand bare, in a fence, or in prose.
    `example.meta["accepted"]` holds what is right, in the form of the Berkeley Function Calling Leaderboard:
    `{"name": "area", "arguments": {"base": [10], "height": [5], "unit": ["units", ""]}, "required": ["base"]}`, where
    each argument has a list of accepted values and `""` says that it may be absent. A dict among them has a list of
    accepted values for each of its keys. Without it the reference's own call says what is right.

    The rules are those of the leaderboard's checker (bfcl_eval.eval_checker.ast_eval), down to names without quotes
    that stand for strings, with these differences. Values are compared, not declared types: an int passes for an
    equal float in lists too, an equal float passes for an int, a tuple passes for a list, and `""` passes for an
    argument of any type that may be absent. Strings in dicts and in nested lists are compared like all others.
    Arithmetic is not evaluated, and positional arguments are refused, not ignored.
    """

    name: Literal["call_ast"] = "call_ast"
    strings: Literal["loose", "exact"] = "loose"
    """`loose`: as the leaderboard, case, spaces and any of `,./-_*^` do not count; `exact`: to the letter."""

    def __call__(self, example: Example, text: str) -> Verdict:
        """Refuse with `no_call`, `wrong_name`, `positional`, `unknown_argument`, `missing_argument` or `wrong_value`.

        `reference_not_a_call` says that there is nothing to compare with.
        """
        accepted = accepted_call(example)
        if accepted is None:
            return fail("reference_not_a_call", example.reference[:80])
        other = None
        for call in _calls(text):
            if call.name == accepted["name"]:
                return self._compare(call, accepted)
            other = other or call.name
        return fail("wrong_name", f"{other} for {accepted['name']}") if other else fail("no_call")

    def _compare(self, call: _Call, accepted: Mapping[str, Any]) -> Verdict:
        if call.positional:
            return fail("positional", ", ".join(call.positional)[:80])
        arguments: Mapping[str, Sequence[Any]] = accepted["arguments"]
        given: dict[str, Any] = {}
        for name, value in call.keywords:
            if name not in arguments or name in given:
                return fail("unknown_argument", name if name not in arguments else f"{name} is given twice")
            given[name] = value
        for name, values in arguments.items():
            if name not in given and (name in accepted.get("required", ()) or "" not in values):
                return fail("missing_argument", name)
        for name, value in given.items():
            if not self._any(value, arguments[name]):
                wanted = " or ".join(map(repr, arguments[name]))
                return fail("wrong_value", f"{name}={value!r} for {wanted}"[:200])
        return PASS

    def _any(self, value: Any, accepted: Sequence[Any]) -> bool:
        return any(self._equal(value, item) for item in accepted)

    def _equal(self, value: Any, accepted: Any) -> bool:
        match accepted:
            case dict():
                return (
                    isinstance(value, dict)
                    and all(key in accepted and self._any(item, accepted[key]) for key, item in value.items())
                    and all(key in value or "" in values for key, values in accepted.items())
                )
            case list() | tuple():
                return (
                    isinstance(value, list | tuple)
                    and len(value) == len(accepted)
                    and all(map(self._equal, value, accepted))
                )
            case str():
                return isinstance(value, str) and self._string(value) == self._string(accepted)
            case int() | float() if not isinstance(accepted, bool):
                return isinstance(value, int | float) and not isinstance(value, bool) and value == accepted
            case _:
                return type(value) is type(accepted) and bool(value == accepted)

    def _string(self, text: str) -> str:
        if self.strings == "exact":
            return text
        return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def accepted_call(example: Example) -> Mapping[str, Any] | None:
    """What a reply to `example` must call: `meta["accepted"]`, else the reference's call; None where it has none."""
    if "accepted" in example.meta:
        accepted: Mapping[str, Any] = example.meta["accepted"]
        return accepted
    call = next(_calls(example.reference), None)
    if call is None or call.positional:
        return None
    arguments = {name: [_as_accepted(value)] for name, value in call.keywords}
    return {"name": call.name, "arguments": arguments, "required": list(arguments)}


def _as_accepted(value: Any) -> Any:
    """A value in the form of an accepted one: the values of dicts stand in lists."""
    match value:
        case dict():
            return {key: [_as_accepted(item)] for key, item in value.items()}
        case list() | tuple():
            return [_as_accepted(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    positional: tuple[str, ...]
    """Source of the arguments without a name, `*` and `**` among them."""
    keywords: tuple[tuple[str, Any], ...]


def _calls(text: str) -> Iterator[_Call]:
    """The calls in `text` that parse as Python, in order, those inside other calls included."""
    for start in islice(_CALL_START.finditer(text), _MAX_CALLS):
        end = _closing_bracket(text, start.end())
        call = _read(start[1], text[start.start() : end]) if end else None
        if call:
            yield call


_TOKEN = re.compile(r"""\"\"\".*?\"\"\"|'''.*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[()]""", re.DOTALL)


def _closing_bracket(text: str, start: int) -> int | None:
    """Where the call whose arguments begin at `start` ends, brackets in strings left out; None where it does not."""
    depth = 1
    for token in _TOKEN.finditer(text, start, start + _MAX_CALL_CHARS):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    return None


def _read(name: str, source: str) -> _Call | None:
    """The call that `source` is, or None where it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in a reply are no business of the user's
        try:
            node = ast.parse(source, mode="eval").body
            if not isinstance(node, ast.Call):
                return None
            return _Call(
                name=name,
                positional=tuple(ast.unparse(item) for item in node.args)
                + tuple(f"**{ast.unparse(item.value)}" for item in node.keywords if item.arg is None),
                keywords=tuple((item.arg, _value(item.value)) for item in node.keywords if item.arg is not None),
            )
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _value(node: ast.expr) -> Any:
    """The value of a literal; anything else is its source text, so that a name without quotes reads as a string."""
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant | ast.Name) for key in keys):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True) if key is not None}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return ast.unparse(node)
