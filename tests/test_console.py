"""What progress says where nobody watches a bar."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from sdft import console
from sdft.console import Console, duration


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_told_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(console, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_the_time_left_is_told_once_it_can_be_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    clock = Clock(monkeypatch)
    with Console().task("distill", total=100) as task:
        clock.now += 50
        for _ in range(8):
            task.advance(extra=10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "distill: 1/100 rows, 50.0 s/row, 0 tokens/s"
    assert not any("left" in line for line in lines[:4])
    assert lines[4] == "distill: 5/100 rows, 10.0 s/row, 1 tokens/s, 15 min 50 s left"
    assert lines[-1] == "distill: 8 rows, 6.2 s/row, 2 tokens/s, 50 s"


def test_fast_work_is_told_in_rows_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Console().task("select", total=100, done=40) as task:
        clock.now += 2
        task.advance(60)
    assert capsys.readouterr().err.splitlines()[-1] == "select: 100 rows, 30.0 rows/s, 2 s"


def test_silent_work_says_that_it_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.04)
    with Console().task("distill", total=500, done=395):
        time.sleep(0.3)
    assert "distill: 395/500 rows, at work for 0 s" in capsys.readouterr().err
    with pytest.raises(ValueError), Console().task("distill", total=5):
        raise ValueError
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "nothing is said after the end"
    with Console(quiet=True).task("distill", total=5):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
