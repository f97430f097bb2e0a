"""Recipe files and `key=value` → one tree of plain values, and where each of its keys stands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdft.benchmarks.dataset import written_out
from sdft.errors import RecipeError, suggestion
from sdft.records import named
from sdft.secret import FORMS

NAMED = (
    ("model",),
    ("distill", "engine"),
    ("select", "checks"),
    ("evaluate", "engine"),
    ("evaluate", "benchmarks"),
)
"""Where a plain string stands for `{name: string}`."""

SHIPPED = Path(__file__).parents[1] / "recipes"
"""The recipes that come with sdft."""

QUOTED = 70
"""Characters of a line that are quoted."""

_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is built


class Loader(_Base):  # type: ignore[valid-type, misc]
    """Safe YAML in which `1e-4` is a number (YAML 1.1 wants `1.0e-4`) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if any(key == other and type(key) is type(other) for other in keys):  # 1 and true are equal
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            keys.append(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a recipe file. Lines and columns are counted from 1."""

    path: Path
    line: int
    column: int
    text: str
    """The line."""

    def quoted(self) -> str:
        """` (mine.yaml:4:9)`, and below it the line with a mark under the column."""
        start = max(0, self.column - 1 - QUOTED // 2)
        shown = _without_secrets(self.text)[start : start + QUOTED].rstrip()
        return f" ({self.path}:{self.line}:{self.column})\n      {shown}\n      {' ' * (self.column - 1 - start)}^"


SECRETS = re.compile(
    r"""(?:\b[\w.-]*(?:key|token|secret|password|authorization|credential)[\w.-]*["']?\s*[:=][\s\[{]*)"""
    r"""(?:"(?P<double>[^"]+)|'(?P<single>[^']+)|(?P<value>[^,"'}\]#]+))"""
    r"""|\bbearer\s+(?P<bearer>[^\s,"'}\]]+)"""
    rf"""|(?:://|\bbase_url["']?\s*:\s*["']?)(?P<user>[^\s/@"']+)@|(?P<bare>{FORMS})""",
    re.IGNORECASE,
)
"""What may be a key: the value of what is called so, a user in an address, and the usual forms of keys."""


def _without_secrets(line: str) -> str:
    """A line of a recipe as it may be shown, in a log too: what may be a key is as many asterisks."""

    def hidden(found: re.Match[str]) -> str:
        [(group, value)] = [(name, text) for name, text in found.groupdict().items() if text is not None]
        start = found.start(group) - found.start()
        if group in ("double", "single", "value") and re.fullmatch(
            r"[A-Z][A-Z0-9_]*|[0-9]+|null|true|false", value.strip()
        ):
            return found[0]  # the name of an environment variable, or a number
        return found[0][:start] + "*" * len(value) + found[0][start + len(value) :]

    return SECRETS.sub(hidden, line)


def recipe_file(source: str | Path) -> Path:
    """The file that a path or a bare name means: from here, from `recipes/` here, or shipped; else the path itself."""
    for folder in (Path(), Path("recipes"), SHIPPED):
        for name in (source, f"{source}.yaml"):
            if (folder / name).is_file():
                return folder / name
    return Path(source)


def recipe_files() -> dict[str, Path]:
    """By the name that `sdft run` takes: the recipes that come with sdft, and those in `recipes/` here.

    A base.yaml is there to be extended and no recipe of its own.
    """
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in (SHIPPED, Path("recipes"))
        for path in folder.glob("**/*.yaml")
        if path.name != "base.yaml"
    }
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, Place]]:
    """A recipe file, and by dotted key where each of its keys and list items stands."""
    lines: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            tree = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except FileNotFoundError:
        told = suggestion(str(path), recipe_files()) or "; `sdft list recipes` shows those that come with sdft"
        raise RecipeError(f"{path}: no such recipe{told}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where, quoted = (f":{mark.line + 1}:{mark.column + 1}", _at(path, mark, lines).quoted()) if mark else ("", "")
        quote = quoted.partition("\n")[1] + quoted.partition("\n")[2]
        raise RecipeError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}){quote}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys such as `model:` and `data:`")
    try:
        return tree, {key: _at(path, mark, lines) for key, mark in _marks(node)}
    except RecursionError:
        raise RecipeError(f"{path}: an alias (*name) stands within what it is an alias of") from None


def _at(path: Path, mark: Any, lines: Sequence[str]) -> Place:
    return Place(path, mark.line + 1, mark.column + 1, lines[mark.line] if mark.line < len(lines) else "")


def _marks(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key → mark: of the key in a mapping, of the item in a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark
            yield from _marks(value, f"{prefix}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", value.start_mark
            yield from _marks(value, f"{prefix}{index}.")


def extended(
    tree: dict[str, Any], own: dict[str, Place], chain: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[str, Place]]:
    """A recipe on top of those that it extends, and by dotted key the place where each key of the whole stands.

    `own` are the places of the recipe's own keys, `chain` the files that led here, this recipe's own last.
    """
    bases = tree.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    way = " → ".join(str(path) for path in chain) or "recipe"
    at = own["extends"].quoted() if "extends" in own else ""
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise RecipeError(f"{way}: extends: the path of a recipe, or a list of them, not {bases!r}{at}")
    expand_names(tree)
    below_all: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for base in bases:
        beside = Path(os.path.normpath((chain[-1].parent if chain else Path()) / base))
        path = beside if beside.is_file() else recipe_file(base)
        if path.resolve() in {before.resolve() for before in chain}:
            raise RecipeError(f"{way} → {path}: recipes extend one another in a circle; take one `extends` out{at}")
        if not path.is_file():
            raise RecipeError(f"{way} → {beside}: there is no such recipe to extend{at}")
        below, given = extended(*read_yaml(path), (*chain, path))
        below.pop("name", None)
        below_all = merge(below_all, below)
        places = _placed(places, given, below)
    return merge(below_all, tree), _placed(places, own, tree)


def _placed(below: dict[str, Place], above: dict[str, Place], tree: dict[str, Any]) -> dict[str, Place]:
    """The places of two recipes as one; what `tree`, the upper one, replaces has none below."""
    leaves = tuple(f"{key}." for key in _leaves(tree))
    return {key: place for key, place in below.items() if not f"{key}.".startswith(leaves)} | above


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one, the second on top."""
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = merge(under, value) if value.get("name", under.get("name")) == under.get("name") else value
        out[key] = value
    return out


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values that are no mapping."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def place_of(problem: str, places: Mapping[str, Place], overrides: Iterable[str]) -> str:
    """Where the key of a problem stands, quoted; empty for what came from elsewhere, such as the command line."""
    key, _, message = problem.partition(": ")
    inner = message.partition(": ")[0]  # a section's own validator names a key of it: `distill: candidates: …`
    if any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides):
        return ""
    parts = key.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    found = next((places[name] for name in [f"{key}.{inner}", *prefixes] if name in places), None)
    return found.quoted() if found else ""


def apply_override(tree: dict[str, Any], override: str) -> str | None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        return f"'{override}': an override has the form key=value, such as train.epochs=1"
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        return f"'{override}': the value is not valid YAML ({getattr(error, 'problem', error)})"
    *parents, last = key.split(".")
    if not all([*parents, last]):
        return f"'{override}': a key has no empty parts; write it as in train.epochs=1"
    node: Any = tree
    for part in parents:
        child = node.get(part)
        if isinstance(child, str):
            child = {"name": child}
        elif child is None:
            child = {}
        elif not isinstance(child, dict):
            return f"'{override}': '{part}' is a {type(child).__name__} and has no keys; replace it as a whole"
        node[part] = child
        node = child
    node[last] = value
    return None


def expand_names(tree: dict[str, Any]) -> None:
    """Write a plain string out where settings with a name are wanted, alone or in a list."""
    for *parents, last in NAMED:
        node: Any = tree
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            value = node[last]
            node[last] = [written_out(named(item)) for item in value] if isinstance(value, list) else named(value)


def copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value
