"""Which way imports point, and how little start-up needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sdft"
LAYERS = (
    {"errors", "records", "secret"},
    {
        *("rundir", "console", "prompts", "checks", "data", "models", "stats", "programs", "sandbox"),
        *("length_control", "thinking", "visible"),
    },
    {"memory"},
    {"engines"},
    {"judge"},
    {"benchmarks", "rendering", "candidates", "report"},
    {"recipe"},
    {"stages", "manifest", "inspection", "cautions", "training", "analysis", "needs", "order"},
    {"pipeline", "api", "starter", "doctor", "recipe_schema"},
    {"scoreboard", "untrained", "grid", "comparing", "gate", "planning", "cards", "export", "serving", "chat"},
    {"cli"},
    {"__init__", "__main__"},
)
"""From the bottom up: a module imports from its own layer or below, never from above."""
HEAVY = {
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "scipy", "matplotlib", "jinja2", "rich",
    "numpy", "pyarrow", "lm_eval", "nltk", "reasoning_gym", "gguf", "safetensors", "tokenizers", "huggingface_hub",
    "openai", "httpx2", "ray", "vllm",
}  # fmt: skip


def level(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    found = [index for index, layer in enumerate(LAYERS) if part in layer]
    assert found, f"{module} stands in no layer: put it into LAYERS"
    return found[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(path: Path) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            out.add(node.module)
            if node.module in ("sdft", "sdft.stages"):
                out |= {f"{node.module}.{alias.name}" for alias in node.names}
    return out


def at_start(path: Path) -> set[str]:
    """Packages imported by merely importing the module."""
    out: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            out |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += list(ast.iter_child_nodes(node))
    return out


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way_and_heavy_ones_stand_in_functions(path: Path) -> None:
    module = name_of(path)
    if module == "sdft.__init__":
        return  # it names everything, and imports it when it is asked for
    for other in sorted(imported(path)):
        if other.split(".")[0] == "sdft" and other != "sdft":
            assert level(other) <= level(module), f"{module} imports {other} from above"
            if module.startswith("sdft.stages.") and other.startswith("sdft.stages."):
                assert other == module, f"stages never import one another: {module} imports {other}"
    if not path.name.startswith("_") or path.name == "__init__.py":
        assert not at_start(path) & HEAVY, f"{module} imports {at_start(path) & HEAVY} before it is needed"


@pytest.mark.parametrize("module", ["sdft", "sdft.cli", "sdft.recipe", "sdft.pipeline", "sdft.api", "sdft.inspection"])
def test_importing_draws_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
