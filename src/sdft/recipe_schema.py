"""The JSON Schema of recipes, for editors: keys, values and what they mean, as they are typed."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from sdft.benchmarks import AnyBenchmark, OwnDataset
from sdft.checks import AnyCheck
from sdft.engines import AnyEngine
from sdft.inspection import members
from sdft.prompts import templates
from sdft.recipe import Recipe
from sdft.recipe.files import NAMED
from sdft.records import Settings

UNIONS: dict[str, Any] = {"engine": AnyEngine, "checks": AnyCheck, "benchmarks": AnyBenchmark}


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file: `extends` included, and plain strings where they stand for `{name: …}`.

    A recipe that extends another leaves out what that one says, so little is required here; `sdft check` sees the
    whole.
    """
    schema = Recipe.model_json_schema()
    docs = {cls.__name__: cls for cls in _settings(Settings)}
    for name, part in {"Recipe": schema, **schema["$defs"]}.items():
        if name in docs:
            _describe(part, docs[name])
            part["required"] = [key for key in part.get("required", ()) if key == "name"]
    for *parents, last in NAMED:
        place = schema
        for parent in parents:
            place = _definition(schema, place["properties"][parent])
        place["properties"][last] = _or_a_name(place["properties"][last], last)
    own = schema["$defs"][OwnDataset.__name__]["properties"]
    own["check"] = _or_a_name(own["check"], "checks")
    own["data"] = _or_a_name(own["data"], "data")
    prompt = _definition(schema, schema["properties"]["prompt"])["properties"]
    for key in ("distill", "train", "infer"):
        prompt[key]["examples"] = sorted(templates())
    path = {"type": "string", "minLength": 1}
    schema["properties"]["extends"] = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "A recipe to build on, or several: paths are relative to this file, later ones win.",
    }
    schema["anyOf"] = [{"required": ["model"]}, {"required": ["extends"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sdft recipe", **schema}


def _settings(cls: type[Settings]) -> Iterator[type[Settings]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _settings(sub)


def _definition(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The object that a property's schema refers to."""
    found: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return found


def _or_a_name(part: dict[str, Any], key: str) -> dict[str, Any]:
    """A section, or its name alone; of a list, each of its items."""
    if part.get("type") == "array":
        return {**part, "items": _or_a_name(part["items"], key)}
    name: dict[str, Any] = {"type": "string"}
    if key in UNIONS:
        known = members(UNIONS[key])
        alone = [
            n
            for n, cls in known.items()
            if not any(f.is_required() for k, f in cls.model_fields.items() if k != "name")
        ]
        name["enum"] = alone
    kept: dict[str, Any] = {key: part.pop(key) for key in ("default", "description") if key in part}
    return {"anyOf": [name, part], **kept}


def _describe(part: dict[str, Any], cls: type[Settings]) -> None:
    """Put each field's docstring beside it."""
    part["description"] = inspect.cleandoc(cls.__doc__ or "")
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Settings):
            found |= _field_docs(base)
    for key, text in found.items():
        if key in part.get("properties", {}):
            part["properties"][key]["description"] = text


def _field_docs(cls: type[Settings]) -> dict[str, str]:
    """Field → the string that stands below it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
