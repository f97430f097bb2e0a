"""A tree of plain values → the typed recipe, or every problem in words, with what was likely meant."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from sdft.data.config import DataConfig
from sdft.errors import did_you_mean, suggestion
from sdft.models import ModelConfig
from sdft.prompts import PromptConfig
from sdft.prompts import problems as template_problems
from sdft.recipe.files import copied
from sdft.recipe.settings import DistillConfig, EvaluateConfig, Recipe
from sdft.records import Settings
from sdft.secret import hidden


def validated(tree: dict[str, Any]) -> tuple[Recipe | None, list[str], dict[str, Any]]:
    """The recipe, or what is wrong with it; and the tree without what is wrong.

    A wrong value keeps pydantic from looking at what depends on it, so it is taken out and the rest looked at again.
    """
    problems: list[str] = []
    mended, gone = copied(tree), dict[tuple[Any, ...], list[int]]()
    while True:
        try:
            recipe = Recipe.model_validate_json(to_json(mended), strict=True)  # strict: "5" is no number
            return (None if problems else recipe), problems, mended
        except ValidationError as error:
            items = error.errors()
        for item in items:
            problem = explain({**item, "loc": _as_first_numbered(item["loc"], gone)})
            if problem not in problems:
                problems.append(problem)
        wrong = [list(_as_written(list(item["loc"]))) for item in items if item["type"] != "missing"]
        taken = [_take_out(mended, loc, gone) for loc in sorted(wrong, key=_last_first)]
        if not any(taken):
            return None, problems, mended


def _last_first(loc: list[Any]) -> list[tuple[int, str]]:
    """Sorts the later items of a list to the front: taking one out moves those behind it."""
    return [(-part, "") if isinstance(part, int) else (0, str(part)) for part in loc]


def _take_out(tree: Any, loc: list[Any], gone: dict[tuple[Any, ...], list[int]]) -> bool:
    """Delete what stands at a path; for an item of a list, remember its number."""
    node = tree
    for part in loc[:-1]:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return False
    last = loc[-1] if loc else None
    if isinstance(node, dict) and last in node:
        del node[last]
        return True
    if isinstance(node, list) and isinstance(last, int) and last < len(node):
        gone.setdefault(tuple(loc[:-1]), []).append(_first_number(last, gone.get(tuple(loc[:-1]), [])))
        del node[last]
        return True
    return False


def _first_number(index: int, gone: list[int]) -> int:
    """An item's number in the list before some were taken out."""
    for number in sorted(gone):
        index += number <= index
    return index


def _as_first_numbered(loc: tuple[Any, ...], gone: Mapping[tuple[Any, ...], list[int]]) -> tuple[Any, ...]:
    """A path with the numbers that items of lists had at first."""
    out = list(loc)
    for place, part in enumerate(loc):
        before = gone.get(tuple(_as_written(list(loc[:place]))))
        if isinstance(part, int) and before:
            out[place] = _first_number(part, before)
    return tuple(out)


def sound_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Those sections of a faulty recipe that are in order by themselves."""
    sections: tuple[tuple[str, type[Settings]], ...] = (
        ("model", ModelConfig),
        ("data", DataConfig),
        ("distill", DistillConfig),
        ("evaluate", EvaluateConfig),
    )
    sound = {}
    for key, kind in sections:
        try:
            sound[key] = kind.model_validate_json(to_json(tree[key]), strict=True)
        except (KeyError, ValidationError):  # not given, or named among the problems already
            continue
    return sound


def prompt_problems(tree: Mapping[str, Any]) -> list[str]:
    """What is wrong with the recipe's templates, also where other sections are wrong."""
    evaluate = tree.get("evaluate")
    benchmarks = evaluate.get("benchmarks") if isinstance(evaluate, dict) else None
    others = {
        f"evaluate.benchmarks.{index}.template": benchmark["template"]
        for index, benchmark in enumerate(benchmarks if isinstance(benchmarks, list) else [])
        if isinstance(benchmark, dict) and isinstance(benchmark.get("template"), str)
    }
    try:
        return template_problems(PromptConfig.model_validate(tree.get("prompt", {})), others)
    except ValidationError:
        return []  # its keys and types have been named already


def explain(item: Any) -> str:
    """One pydantic error as `key: what is wrong`, with a suggestion for misspelt keys and names."""
    loc, kind = list(item["loc"]), item["type"]
    model = _model_at(Recipe, loc[:-1])
    key = ".".join(str(part) for part in _as_written(loc))
    if kind == "extra_forbidden":
        options = list(model.model_fields) if model else []
        return f"{key}: unknown key{did_you_mean(str(loc[-1]), options)}"
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "union_tag_invalid":
        context = item["ctx"]
        names = [name.strip(" '") for name in context["expected_tags"].split(",")]
        return f"{key}: no '{context['tag']}'{did_you_mean(context['tag'], names)}"
    if kind == "literal_error":
        names = [name.strip(" '") for name in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        shown = hidden(repr(item["input"]))
        return f"{key}: {shown} is none of {', '.join(names)}{suggestion(str(item['input']), names)}"
    if kind == "value_error":
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    if kind in ("tuple_type", "list_type") and isinstance(item["input"], str):
        return f"{key}: wants a list; write [{item['input']}]"
    message = item["msg"][0].lower() + item["msg"][1:]
    shown = hidden(repr(item["input"]))
    return f"{key}: {message}, not {shown if len(shown) < 60 else type(item['input']).__name__}"


def _as_written(loc: list[Any]) -> Iterator[Any]:
    """A path without what pydantic adds to it: a union's tag stands behind a list's index, `engine` or `check`."""
    for index, part in enumerate(loc):
        tag = index > 0 and (isinstance(loc[index - 1], int) or loc[index - 1] in ("engine", "check"))
        if not tag and not (isinstance(part, str) and part[:1].isupper()):
            yield part


def _model_at(model: type[BaseModel], loc: list[Any]) -> type[BaseModel] | None:
    """The settings class at a path such as ("evaluate", "benchmarks", 0, "gsm8k")."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field: FieldInfo | None = current.model_fields.get(str(part))
            if field is None:
                return None
            current = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        else:
            members = list(_members(current))
            if isinstance(part, int):
                continue  # an index into a tuple: its members are what `current` yields
            tagged = (
                [m for m in members if part in typing.get_args(m.model_fields["name"].annotation)]
                if all("name" in m.model_fields for m in members)
                else []
            )
            holders = tagged or [m for m in members if part in m.model_fields]
            if not holders:
                return None
            current = holders[0]
            if not tagged:
                field = current.model_fields[str(part)]
                current = field.annotation
    found = list(_members(current))
    return found[0] if len(found) == 1 else None


def _members(annotation: Any) -> Iterable[type[BaseModel]]:
    """All settings classes inside an annotation: unions, tuples, Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType, tuple, Annotated):
        for part in typing.get_args(annotation):
            yield from _members(part)
