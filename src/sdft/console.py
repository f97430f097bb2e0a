"""The only module that draws: progress, tables, and lines for people. Everything goes to stderr but results.

On a terminal a progress bar shows rate and time left; elsewhere a plain line comes every few seconds; a quiet
console says nothing. `Console` is passed to what draws; there is no global one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdft.visible import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 5.0
"""Between two lines where nobody watches a bar."""
SILENT_SECONDS = 60.0
"""After which a line says that it still goes on, though nothing was finished."""


class Task:
    """A running count towards a total, with an optional second count such as tokens."""

    def __init__(self, console: Console, label: str, total: int | None, done: int, unit: str) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done = self.first = done
        self.extra = 0.0
        self.extra_unit = ""
        self.started = time.monotonic()
        self._said = self.started
        self._bar: tuple[Progress, TaskID] | None = None

    def advance(self, count: int = 1, extra: float = 0.0, extra_unit: str = "tokens") -> None:
        """Count `count` more done and, beside it, `extra` of something else (shown as a rate)."""
        self.done += count
        self.extra += extra
        self.extra_unit = extra_unit if self.extra else ""
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self.done, note=self._rates() + self._left())
        elif not self.console.quiet and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self.console.say(f"{self._so_far()}, {self._rates()}{self._left()}")

    def _rates(self) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        count = self.done - self.first
        note = f"{count / elapsed:.1f} {self.unit}/s"
        if 0 < count < elapsed:
            note = f"{elapsed / count:.1f} s/{self.unit.removesuffix('s')}"
        return note + (f", {self.extra / elapsed:.0f} {self.extra_unit}/s" if self.extra_unit else "")

    def _so_far(self) -> str:
        of = f"/{self.total}" if self.total is not None else ""
        return f"{self.label}: {self.done}{of} {self.unit}"

    def _left(self) -> str:
        """The time that the rest takes at the rate so far; nothing where so little is done that it says nothing."""
        count = self.done - self.first
        if not self.total or count < max(2, min(64, 0.05 * (self.total - self.first))):
            return ""
        seconds = (time.monotonic() - self.started) / count * (self.total - self.done)
        return f", {duration(seconds)} left"

    def _watch(self, over: threading.Event) -> None:
        """Say now and then that work goes on where none of it is finished yet."""
        while not over.wait(SILENT_SECONDS / 4):
            if time.monotonic() - self._said >= SILENT_SECONDS:
                self._said = time.monotonic()
                self.console.say(f"{self._so_far()}, at work for {duration(time.monotonic() - self.started)}")


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


class Console:
    """Where a command speaks. `quiet` silences everything but warnings and errors."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches."""
        return sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One line, unless quiet."""
        if not self.quiet:
            print(visible(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """One line, even when quiet."""
        print(f"warning: {visible(text)}", file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: int | None = None, done: int = 0, unit: str = "rows") -> Iterator[Task]:
        """Show progress while the block runs; `done` is what an earlier call had finished already."""
        task = Task(self, label, total, done, unit)
        if self.quiet:
            yield task
            return
        if not self.is_terminal:
            over = threading.Event()
            threading.Thread(target=task._watch, args=(over,), daemon=True).start()
            try:
                yield task
            finally:
                over.set()
            if task.done > task.first:
                self.say(f"{label}: {task.done} {unit}, {task._rates()}, {duration(time.monotonic() - task.started)}")
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True)) as bar:
            task._bar = (bar, bar.add_task(label, total=total, completed=done, note=""))
            yield task

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table on stdout; the first column is text, the others are right-aligned."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
        table.show_edge = table.pad_edge = False
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        RichConsole(file=sys.stdout).print(table)

    def side_by_side(self, states: Iterable[dict[str, str]]) -> None:
        """Show texts that grow, a column for each name, on stdout; without a terminal, below one another at the end."""
        if not sys.stdout.isatty():
            for name, text in [{}, *states][-1].items():
                print(f"{name}: {visible(text.strip())}")
            return
        from rich.console import Console as RichConsole
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        with Live(console=RichConsole(file=sys.stdout), refresh_per_second=12, vertical_overflow="visible") as live:
            for state in states:
                columns = Table(box=None, expand=True, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
                for name in state:
                    columns.add_column(name, ratio=1, overflow="fold")
                columns.add_row(*(Text(visible(text.strip())) for text in state.values()))
                live.update(columns)
