"""Berkeley Function Calling Leaderboard, category simple_python: one request, one function, one call.

    Question: Find the area of a triangle with a base of 10 units and height of 5 units.
    Function to be used: calculate_triangle_area        Required: [base, height]
    reference: calculate_triangle_area(base=10, height=5)
    accepted:  base [10], height [5], unit ["units", ""]       ("" : may be absent)

400 requests with the argument values that count as right, read from the data files of the package bfcl-eval;
the package itself is never imported. The split is fixed by a hash of the id.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sdft.errors import DataError
from sdft.records import Example, Message, Settings

FILE = "bench/bfcl/simple_python.jsonl"
PARTS = {"train": slice(0, 240), "dev": slice(240, 300), "test": slice(300, None), "all": slice(None)}
MISSING = (
    f"bfcl_simple: no data here; pip install --no-deps bfcl-eval, or put {FILE} (rows of id, question, function, "
    "ground_truth) into a folder of SDFT_DATA_DIR"
)


class BfclOptions(Settings):
    """Settings of `bfcl_simple`."""

    part: Literal["train", "dev", "test", "all"] = "all"
    """240, 60 and 100 requests; an id always falls into the same part."""


def missing_bfcl(data_dirs: tuple[Path, ...]) -> str | None:
    """How to get the data, or None where it is there."""
    return None if _package_files() or _plain_file(data_dirs) else MISSING


def bfcl_examples(options: BfclOptions, data_dirs: tuple[Path, ...]) -> Iterator[Example]:
    """The requests of a part, in the order of the file. Raises DataError where the data is not there."""
    rows = _rows(data_dirs)
    ranked = sorted((row["id"] for row in rows), key=lambda name: hashlib.sha256(name.encode()).digest())
    wanted = set(ranked[PARTS[options.part]])
    for row in rows:
        if row["id"] in wanted:
            yield _example(row)


def _rows(data_dirs: tuple[Path, ...]) -> list[dict[str, Any]]:
    package = _package_files()
    if package is not None:
        questions, answers = (_read(path) for path in package)
        truth = {row["id"]: row["ground_truth"] for row in answers}
        return [{**row, "ground_truth": truth[row["id"]]} for row in questions]
    plain = _plain_file(data_dirs)
    if plain is None:
        raise DataError(MISSING)
    return _read(plain)


def _package_files() -> tuple[Path, Path] | None:
    spec = importlib.util.find_spec("bfcl_eval")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        name = "BFCL_v4_simple_python.json"
        files = (Path(place) / "data" / name, Path(place) / "data" / "possible_answer" / name)
        if all(file.is_file() for file in files):
            return files
    return None


def _plain_file(data_dirs: tuple[Path, ...]) -> Path | None:
    return next((folder / FILE for folder in data_dirs if (folder / FILE).is_file()), None)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install bfcl-eval again") from None


def _example(row: Mapping[str, Any]) -> Example:
    function = row["function"][0]
    (arguments,) = row["ground_truth"][0].values()
    required: list[str] = function["parameters"]["required"]
    instruction = _prompt(row["question"][0][0]["content"], function)
    reference = reference_call(function["name"], arguments, required)
    return Example(
        id=row["id"],
        messages=(Message(role="user", content=instruction),),
        reference=reference,
        meta={
            "row": {"id": row["id"], "instruction": instruction, "output": reference},
            "reply_column": "output",
            "accepted": {"name": function["name"], "arguments": arguments, "required": required},
        },
    )


def _prompt(question: str, function: Mapping[str, Any]) -> str:
    """Request and function in the words of the reference's openfunction rows."""
    parameters = [
        f"{number}. {name} (type: {about['type']})" + (f" - {about['description']}" if about.get("description") else "")
        for number, (name, about) in enumerate(function["parameters"]["properties"].items(), 1)
    ]
    return "\n".join(
        (
            "Construct a function call to answer the given question using keyword arguments based on the provided "
            "specifications:",
            "",
            f"Question: {question}",
            "",
            f"Function to be used: {function['name']}",
            f"Description: {function['description']}",
            "Parameters:",
            *parameters,
            f"Required: [{', '.join(function['parameters']['required'])}]",
            "",
            "Format your response as a single string using keyword arguments.",
        )
    )


def reference_call(name: str, arguments: Mapping[str, list[Any]], required: list[str]) -> str:
    """A call with the first accepted value of each argument that may not be absent."""
    written = [
        f"{argument}={_first(values)!r}"
        for argument, values in arguments.items()
        if argument in required or "" not in values
    ]
    return f"{name}({', '.join(written)})"


def _first(values: list[Any]) -> Any:
    """The first accepted value that is not the mark for absence. Objects hold lists of accepted values, too."""
    return _concrete(next(value for value in values if value != ""))


def _concrete(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first(inner) for key, inner in value.items() if "" not in inner}
    return [_concrete(item) for item in value] if isinstance(value, list) else value
