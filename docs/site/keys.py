"""Write docs/keys.md, every key that a recipe may have, from the schema that `sdft recipe-schema` prints.

python docs/site/keys.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdft.benchmarks import AnyBenchmark
from sdft.checks import AnyCheck
from sdft.engines import AnyEngine
from sdft.inspection import members
from sdft.recipe_schema import recipe_schema

PAGE = Path(__file__).parents[1] / "keys.md"
HEAD = """# Keys of a recipe

Every key, with what it takes, its default and what it means. This page is made from `sdft recipe-schema` by
`python docs/site/keys.py`; a test compares them. `sdft check RECIPE` prints a recipe with all defaults.
"""
SECTIONS = {
    "model": "ModelConfig",
    "data": "DataConfig",
    "prompt": "PromptConfig",
    "distill": "DistillConfig",
    "select": "SelectConfig",
    "train": "TrainConfig",
    "train.lora": "LoraConfig",
    "evaluate": "EvaluateConfig",
    "evaluate.sampling": "Sampling",
    "judge_model": "JudgeSettings",
    "analyze": "AnalyzeConfig",
}
NAMED = {
    "engine": "a name, or `{name: …}` with [its keys](#engines)",
    "inner": "a name, or `{name: …}` with [its keys](#engines)",
    "check": "a name, or `{name: …}` with [its keys](#checks)",
    "checks": "a list of names, or of `{name: …}` with [their keys](#checks)",
    "benchmarks": "a list of names, or of `{name: …}` with [their keys](#benchmarks)",
}
"""What keys take that name one of several things."""
COMMON = ("label", "limit", "sampling", "template")
"""Keys of every benchmark."""
TYPES = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "a mapping",
}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}


def takes(part: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        at = next((at for at, cls in SECTIONS.items() if cls == name), None)
        return f"the section [{at}](#{at.replace('.', '')})" if at else "a mapping"
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(map(takes, part["anyOf"])))
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if part.get("type") == "array":
        return f"a list of {takes(part.get('items', {})).removeprefix('a ')}" + "s" * (
            part.get("items", {}).get("type") in ("string", "integer", "number") and "enum" not in part["items"]
        )
    bounds = [f"{words} {part[bound]:g}" for bound, words in BOUNDS.items() if bound in part]
    return ", ".join([TYPES.get(part.get("type", ""), "any value"), *bounds])


def rows(properties: dict[str, Any]) -> Iterator[str]:
    """A table's lines."""
    yield "| key | takes | default | |"
    yield "|---|---|---|---|"
    for key, part in properties.items():
        default = part.get("default", {})
        shown = "–" if "default" not in part else "" if isinstance(default, dict) else f"`{json.dumps(default)}`"
        meaning = " ".join(part.get("description", "").split())
        cells = [f"`{key}`", NAMED.get(key) or takes(part), shown, meaning]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def page() -> str:
    """The whole page."""
    schema = recipe_schema()
    defs = schema["$defs"]
    lines = [HEAD, "## The recipe", "", *rows(schema["properties"]), ""]
    for at, cls in SECTIONS.items():
        about = defs[cls]["description"].splitlines()[0]
        lines += [f"## {at}", "", about, "", *rows(defs[cls]["properties"]), ""]
    for heading, union in (("Engines", AnyEngine), ("Checks", AnyCheck), ("Benchmarks", AnyBenchmark)):
        lines += [f"## {heading}", ""]
        common = COMMON if heading == "Benchmarks" else ()
        if common:
            shared = defs["Drift"]["properties"]
            lines += ["All of them take:", "", *rows({key: shared[key] for key in common}), ""]
        for name, member in members(union).items():
            part = defs[member.__name__]
            own = {key: value for key, value in part["properties"].items() if key not in ("name", *common)}
            lines += [f"### {name}", "", part["description"].partition("\n\n")[0].replace("\n", " "), ""]
            lines += [*rows(own), ""] if own else []
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
