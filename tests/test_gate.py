"""Limits that a run must meet: which way is worse, what is printed, exit codes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers_report import demo_run
from sdft import cli
from sdft.console import Console
from sdft.errors import RunError
from sdft.gate import gate, parse_conditions, read_report
from sdft.report.schema import Difference, Report
from sdft.rundir import RunDir, read_json, write_json
from sdft.stages.report import run_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Accuracy 12 → 52 (vanilla) and 41 (SDFT); drift 0.203 and 0.062 nats."""
    folder = demo_run(tmp_path_factory.mktemp("runs") / "demo", rows=20)
    run_report(RunDir(folder), Console(quiet=True))
    return folder


def held(report: Report, losses: Sequence[str] = (), gains: Sequence[str] = (), method: str = "sdft") -> list[bool]:
    return [outcome.passed for outcome in gate(report, parse_conditions(losses, gains), method)]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def with_difference(report: Report, difference: float, better: str = "higher") -> Report:
    """The report with another difference between SDFT and seed on the task."""
    table = report.benchmarks[0]
    pair = Difference(
        model="sdft", baseline="seed", difference=difference, low=difference - 0.05, high=difference + 0.05, n=100,
        p_value=0.5, significant=False, better=None,
    )  # fmt: skip
    row = table.main.model_copy(update={"differences": (pair,), "better": better})
    return report.model_copy(update={"benchmarks": (table.model_copy(update={"metrics": (row,)}),)})


def test_a_line_has_value_interval_and_limit(run: Path) -> None:
    (outcome,) = gate(read_report(run), parse_conditions([], ["reasoning_gym=10"]))
    assert plain(outcome.text) == (
        "pass  reasoning_gym accuracy, SDFT: +29.0 points against the seed (95 % interval +19.0 to +39.0); "
        "at least 10 to be gained"
    )


@pytest.mark.parametrize(
    ("difference", "better", "loss", "gain"),
    [
        (-0.02, "higher", True, False), (-0.021, "higher", False, False), (0.1, "higher", True, True),
        (0.099, "higher", True, False), (0.02, "lower", True, False), (0.03, "lower", False, False),
        (-0.1, "lower", True, True),
    ],
)  # fmt: skip
def test_the_value_decides_in_its_own_direction(
    run: Path, difference: float, better: str, loss: bool, gain: bool
) -> None:
    report = with_difference(read_report(run), difference, better)
    assert held(report, ["reasoning_gym=2"], ["reasoning_gym.accuracy=10"]) == [loss, gain]


def test_a_report_that_is_older_than_the_scores_is_not_believed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stale"
    shutil.copytree(run, folder)
    assert held(read_report(folder), gains=["reasoning_gym=10"]) == [True]
    path = folder / "eval/comparisons.json"
    pairs = read_json(path)
    write_json(path, [pair | {"difference": -0.5, "low": -0.6, "high": -0.4} for pair in pairs])
    assert held(read_report(folder), gains=["reasoning_gym=10"]) == [False]
    shutil.rmtree(folder / "eval")
    assert held(read_report(folder), gains=["reasoning_gym=10"]) == [True], "where only the report is left, it counts"


def test_binary_fractions_do_not_fail_a_limit_that_is_met(run: Path) -> None:
    assert held(with_difference(read_report(run), 0.50 - 0.52), ["reasoning_gym=2"]) == [True]
    assert held(with_difference(read_report(run), 0.1 + 0.2 - 0.3 + 0.07), gains=["reasoning_gym=7"]) == [True]


def test_the_drift_from_the_seed_is_a_loss_by_itself(run: Path) -> None:
    report = read_report(run)
    assert held(report, ["drift=0.07"]) == [True]
    assert held(report, ["drift=0.07"], method="sft") == [False]
    assert held(report, ["drift.same_argmax=7"]) == [True]  # 93.1 of 100 are the same
    (outcome,) = gate(report, parse_conditions(["drift=0.05"], []))
    assert plain(outcome.text) == (
        "FAIL  drift KL from the seed, SDFT: 0.062 nats (95 % interval 0.053 to 0.072); at most 0.05 may be lost"
    )


@pytest.mark.parametrize(
    ("losses", "gains", "method", "said"),
    [
        (["reasoning_gmy=2"], [], "sdft", "no benchmark 'reasoning_gmy'; did you mean 'reasoning_gym'?"),
        (["reasoning_gym.acuracy=2"], [], "sdft", "has no metric 'acuracy'; did you mean 'accuracy'?"),
        (["drift.reply_words=2"], [], "sdft", "neither more nor less"),
        ([], ["drift=1"], "sdft", "cannot be gained"),
        (["reasoning_gym=2"], [], "sdtf", "no method 'sdtf'; did you mean 'sdft'?"),
        ([], [], "sdft", "--max-loss BENCHMARK=POINTS"),
        (["reasoning_gym"], [], "sdft", "not of the form"),
        (["=2"], [], "sdft", "not of the form"),
        (["reasoning_gym=nan"], [], "sdft", "not of the form"),
        ([], ["reasoning_gym=-2"], "sdft", "not negative"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_an_error(
    run: Path, losses: list[str], gains: list[str], method: str, said: str
) -> None:
    with pytest.raises(RunError, match=said.replace("?", r"\?").replace("'", ".")):
        held(read_report(run), losses, gains, method)


def test_a_run_without_a_report_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        read_report(tmp_path / "none")
    with pytest.raises(RunError, match="sdft report"):
        read_report(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{}")
    with pytest.raises(RunError, match="writes it anew"):
        read_report(tmp_path)


def test_a_difference_that_was_not_computed_is_an_error(run: Path) -> None:
    report = read_report(run)
    table = report.benchmarks[0]
    row = table.main.model_copy(update={"differences": ()})
    bare = report.model_copy(update={"benchmarks": (table.model_copy(update={"metrics": (row,)}),)})
    with pytest.raises(RunError, match="no difference from the seed"):
        held(bare, ["reasoning_gym=2"])


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        (["--max-loss", "drift=1", "--min-gain", "reasoning_gym=10"], 0, ["pass", "pass"]),
        (["--max-loss", "drift=0.01", "--min-gain", "reasoning_gym=10"], 1, ["FAIL", "pass"]),
        (["--method", "sft", "--min-gain", "reasoning_gym=40.5"], 1, ["FAIL"]),
        (["--max-loss", "ifeval=2"], 2, []),
        ([], 2, []),
    ],
)
def test_exit_codes(
    run: Path,
    arguments: list[str],
    code: int,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["sdft", "gate", str(run), *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert (done.value.code or 0) == code
    said = capsys.readouterr()
    assert [line[:4] for line in said.out.splitlines()] == lines
    assert said.err.startswith("error: ") == (code == 2)
