"""What mkdocs does beside its plugins: the page of results, where there is one, and the notebook as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/ten_rows.ipynb"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put docs/results.md into the navigation, where it exists."""
    if (Path(config.docs_dir) / "results.md").is_file():
        [evidence] = [part["Evidence"] for part in config.nav or [] if "Evidence" in part]
        if {"Results": "results.md"} not in evidence:
            evidence.insert(0, {"Results": "results.md"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebook, with what its cells printed, as notebook.md."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text = "\n\n".join(_shown(cell) for cell in notebook["cells"])
    files.append(File.generated(config, "notebook.md", content=text + "\n"))
    return files


def _shown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    shown = f"```python\n{source}\n```"
    return f"{shown}\n\n```text\n{printed.rstrip()}\n```" if printed.strip() else shown
