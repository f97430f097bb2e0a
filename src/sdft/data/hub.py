"""Rows of hub datasets."""

from __future__ import annotations

from sdft.data.files import Row, Rows, plain
from sdft.errors import DataError


def hub_rows(name: str, subset: str | None, split: str, revision: str | None) -> Rows:
    """The rows of one split. Raises DataError where the dataset cannot be loaded."""
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # whatever goes wrong in there, the user's way out is the same
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{name}: the hub dataset cannot be loaded ({what[0]}); check data.dataset, data.subset and data.split, or "
            "save it as .jsonl or .parquet and name that file"
        ) from None
    for number, row in enumerate(table, 1):
        yield Row(name, number, plain(row))
