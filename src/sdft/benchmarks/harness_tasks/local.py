"""What the harness tasks of this folder call: rows of files in SDFT_DATA_DIR.

The harness loads this file by its path, and calls a task's `custom_dataset` with its `metadata` and `dataset_kwargs`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.data.files import Row, read_file
from sdft.data.registry import find_file
from sdft.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Splits = dict[str, "Dataset"]


def rows(file: str, **_: object) -> Splits:
    """The file as it is."""
    return {"test": _table(_read(file))}


def hellaswag(file: str, **_: object) -> Splits:
    """`query` and `choices`, cleaned of WikiHow's brackets as the harness does it."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    return {
        "test": _table(
            [
                {
                    "query": preprocess(row["context"]),
                    "choices": [preprocess(ending) for ending in row["endings"]],
                    "gold": row["gold"],
                }
                for row in _read(file)
            ]
        )
    }


def truthfulqa_mc2(file: str, **_: object) -> Splits:
    """With all true answers and all false ones; `choices` holds one true answer and all false ones."""
    docs = []
    for row in _read(file):
        false = [choice for index, choice in enumerate(row["choices"]) if index != row["gold"]]
        targets = {"choices": row["correct"] + false, "labels": [1] * len(row["correct"]) + [0] * len(false)}
        docs.append({"question": row["question"], "mc2_targets": targets})
    return {"test": _table(docs)}


def truthfulqa_prompt(doc: dict[str, Any]) -> str:
    """The harness's own prompt, whose six examples stand in its task file."""
    from lm_eval.utils import apply_template

    return str(apply_template(_truthfulqa_template(), doc))


@functools.cache
def _truthfulqa_template() -> str:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    file = Path(lm_eval.tasks.__file__).parent / "truthfulqa/truthfulqa_mc1.yaml"
    return str(load_yaml(file, resolve_func=False)["doc_to_text"])


def mmlu(file: str, shots: str, subject: str | None = None, **_: object) -> Splits:
    """The questions, and the examples to stand before them, of one subject or of all."""
    return {
        split: _table([row for row in _read(name) if subject in (None, row["subject"])])
        for split, name in (("test", file), ("dev", shots))
    }


def subjects(file: str) -> list[str]:
    """The subjects of an MMLU file, in its order."""
    return list(dict.fromkeys(row["subject"] for row in _read(file)))


def _table(docs: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(docs)


def _read(name: str) -> list[dict[str, Any]]:
    path = find_file(name)
    if path is None:
        raise DataError(f"{name}: in no folder of SDFT_DATA_DIR")
    return _read_file(path)


@functools.cache
def _read_file(path: Path) -> list[dict[str, Any]]:
    found = []
    for row in read_file(path):
        if not isinstance(row, Row) or not isinstance(row.value, dict):
            raise DataError(f"{path}:{row.line}: not a row of this benchmark; is the file whole?")
        found.append(row.value)
    return found
