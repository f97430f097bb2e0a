"""Write docs/commands.md from the texts that `sdft COMMAND --help` prints.

python docs/site/commands.py
"""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from sdft.cli import app

PAGE = Path(__file__).parents[1] / "commands.md"
HEAD = """# Commands

What each command prints with `--help`. This page is made from those texts by `python docs/site/commands.py`; a test
compares them.

Errors go to stderr in one line or a list, with exit code 2. Ctrl-C exits with 130 and
SIGTERM with 143; the same command goes on.
"""


def helped(*command: str) -> str:
    """The help text of a command, as wide as a code block of the site."""
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="sdft", terminal_width=88)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in re.sub(r"\n{3,}", "\n\n", result.stdout).strip().splitlines())


def page() -> str:
    """The whole page."""
    names = list(get_command(app).commands)  # type: ignore[attr-defined]
    parts = [HEAD, f"```text\n{helped()}\n```\n"]
    parts += [f"## sdft {name}\n\n```text\n{helped(name)}\n```\n" for name in names]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
