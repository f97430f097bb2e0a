"""The command line: output, errors in one line, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_data import data_folder
from helpers_pipeline import scripted_recipe
from sdft import cli

Run = Callable[..., tuple[int, str, str]]
COMMANDS = (
    "run", "distill", "select", "train", "eval", "analyze", "report", "sweep", "check", "render", "score", "list",
    "init", "doctor", "recipe-schema", "export", "chat", "gate", "plan",
)  # fmt: skip


@pytest.fixture
def sdft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sdft", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    tree = scripted_recipe(tmp_path)
    del tree["name"]
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_help_names_every_command(sdft: Run) -> None:
    code, out, _ = sdft("--help")
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command}  ", out, re.MULTILINE), command
    assert "--install-completion" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_examples(sdft: Run, command: str) -> None:
    code, out, _ = sdft(command, "--help")
    assert code == 0
    examples = re.split(r"^  Examples?:$", out, maxsplit=1, flags=re.MULTILINE)[1].strip().splitlines()
    assert all(f"sdft {command}" in line for line in examples), examples


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("run dem", "demo"), ("run reference/gs", "reference/gsm8k"), ("exp", "export"), ("list che", "checks")],
)
def test_the_shell_completes_commands_recipes_and_choices(typed: str, completed: str, tmp_path: Path) -> None:
    words = f"sdft {typed}"
    told = {"_SDFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys; sys.argv = ['sdft']; from sdft.cli import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **told},
        cwd=tmp_path,
    )
    assert completed in said.stdout.split()


def test_version(sdft: Run) -> None:
    from importlib.metadata import version

    assert sdft("--version") == (0, version("sdft") + "\n", "")


def test_run_prints_the_scoreboard_in_80_columns_and_where_the_report_is(sdft: Run, recipe: Path) -> None:
    code, out, err = sdft("run", recipe)
    assert code == 0
    assert "reply_words" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert out.splitlines()[-1] == f"report: {recipe.parent}/runs/mine/report/report.html"
    assert "select: 0 of 12 rewritten" in err
    code, out, err = sdft("run", recipe)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert "nothing to do" in out


def test_a_scoreboard_of_three_models_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sdft.console import Console
    from sdft.pipeline import RunResult
    from sdft.recipe import load_recipe
    from sdft.records import Comparison, Score
    from sdft.rundir import write_json
    from sdft.scoreboard import show_scoreboard

    tree = scripted_recipe(tmp_path, methods=["sft", "sdft"])
    tree["evaluate"]["benchmarks"] = ["openfunction", "drift"]
    loaded = load_recipe(tree)
    for model in ("seed", "sft", "sdft"):
        for label, metric in (("openfunction", "accuracy"), ("drift", "kl"), ("drift", "same_argmax")):
            if (model, metric) == ("seed", "kl"):
                continue
            score = Score(
                model=model, benchmark=label, metric=metric, value=0.5, n=9, low=0.123456, high=0.99, kind="rate"
            )
            path = tmp_path / f"eval/{model}/{label}-{metric}/scores.json"
            write_json(path, {"scores": [score.model_dump()]})
    difference = Comparison(
        model="sft", baseline="seed", benchmark="openfunction", metric="accuracy", difference=-0.5, low=-1.0,
        high=0.25, n=9, p_value=0.5,
    )  # fmt: skip
    write_json(tmp_path / "eval/comparisons.json", [difference.model_dump()])
    show_scoreboard(RunResult(loaded, tmp_path, ()), Console())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "50.0 [12, 99]" in out
    assert "-50.0 [-100, 25]" in out
    assert "0.500 [0.123, 0.990]" in out


def test_a_scoreboard_has_no_negative_zero() -> None:
    from sdft.records import Comparison, Metric, Score
    from sdft.scoreboard import _cell

    score = Score(model="sft", benchmark="b", metric="m", value=-0.0, n=9, low=-0.0, high=0.0, kind="mean")
    difference = Comparison(
        model="sft", baseline="seed", benchmark="b", metric="m", difference=-0.0001, low=-0.0002, high=0.0, n=9,
        p_value=None,
    )  # fmt: skip
    assert _cell(score, difference, Metric()) == "0.0 [0, 0]\n+0.0 [0, 0]"
    assert _cell(score, difference, Metric(percent=False)) == "0.000 [0.000, 0.000]\n+0.000 [0.000, 0.000]"


def test_quiet_says_nothing_but_results(sdft: Run, recipe: Path) -> None:
    code, out, err = sdft("run", recipe, "--quiet")
    assert code == 0
    assert [line.partition(" only")[0] for line in err.splitlines()] == ["warning: select:"]
    assert "reply_words" in out


def test_stages_one_by_one_on_recipe_and_run_folder(sdft: Run, recipe: Path) -> None:
    code, _, err = sdft("select", recipe)
    assert code == 2
    assert err.count("\n") == 1
    assert "stage 'distill', which 'select' reads from, is not finished" in err
    folder = recipe.parent / "runs/mine"
    assert sdft("distill", recipe)[0] == 0
    assert sdft("select", folder, "select.checks=[leak]")[0] == 0
    assert sdft("eval", folder)[0] == 0
    code, out, _ = sdft("report", folder)
    assert (code, out) == (0, f"report: {folder}/report/report.html\n")


def test_a_changed_recipe_is_refused_in_one_line(sdft: Run, recipe: Path) -> None:
    sdft("run", recipe)
    code, out, err = sdft("run", recipe, "distill.max_new_tokens=7")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "distill.max_new_tokens: 512 → 7" in err
    assert sdft("run", recipe, "distill.max_new_tokens=7", "--redo", "distill")[0] == 0


def test_check_prints_the_resolved_recipe(sdft: Run, recipe: Path) -> None:
    from sdft.recipe import dump_recipe, load_recipe

    code, out, err = sdft("check", recipe, "train.epochs=3")
    assert code == 0
    assert out == dump_recipe(load_recipe(recipe, ["train.epochs=3"]))
    assert yaml.safe_load(out)["train"]["epochs"] == 3
    assert "in order" in err


def test_check_lists_every_problem(sdft: Run, recipe: Path) -> None:
    code, out, err = sdft("check", recipe, "trian.epochs=3", "train.epoch=1", "methods=[sft, sft]")
    assert (code, out) == (2, "")
    assert "3 problems" in err.splitlines()[0]
    assert [line[:4] for line in err.splitlines()[1:]] == ["  - "] * 3
    assert "did you mean 'epochs'?" in err


def test_check_tells_wrong_keys_and_missing_things_together(sdft: Run, recipe: Path) -> None:
    code, _, err = sdft(
        "check", recipe, "trian.epochs=3", "model=./nowhere", "data.dataset=none.jsonl", "distill.engine=transformers"
    )
    assert code == 2
    assert "3 problems" in err.splitlines()[0]
    assert "did you mean 'train'?" in err
    assert "  - model './nowhere'" in err
    assert "  - data: none.jsonl" in err


def test_check_quotes_the_line_of_a_problem(sdft: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: m/m\ntrain:\n  epochz: 3\n", encoding="utf-8")
    code, _, err = sdft("check", tmp_path / "mine.yaml", "methods=[]")
    assert code == 2
    assert err.splitlines()[1:] == [
        f"  - train.epochz: unknown key; did you mean 'epochs'? ({tmp_path}/mine.yaml:3:3)",
        "        epochz: 3", "        ^",
    ]  # fmt: skip


def test_check_warns_of_what_is_not_wrong(sdft: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdft.benchmarks.drift import Drift
    from sdft.data import load_examples

    data_folder("gsm8k")
    data = str(recipe.parent / "data.jsonl")
    monkeypatch.setattr(Drift, "examples", lambda self: load_examples(data, limit=3))
    settings = (
        "model=gpt/gpt2-base",
        "distill.engine=transformers",
        "evaluate.benchmarks=[{name: gsm8k, limit: 9}, drift]",
    )
    code, _, err = sdft("check", recipe, "--data", "methods=[sft]", *settings)
    assert code == 0
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert ["base model" in warnings[0], "'gsm8k' asks 9 rows" in warnings[1], "'drift' asks what" in warnings[2]] == [
        True
    ] * 3
    assert len(warnings) == 3


def test_init_writes_a_recipe_that_check_takes(sdft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers_pipeline import write_data

    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "sums.jsonl", 4)
    code, out, err = sdft("init")
    assert (code, err) == (0, "")
    assert out.count("\n--- ") + out.startswith("--- ") == 2, "two prompts"
    assert "3 plus 4 is" in out or "0 plus 4 is" in out
    assert "sums.jsonl: 4 rows looked at; prompts in column 'instruction', replies in 'output'; replies: numbers" in out
    assert sdft("check", "sums.yaml")[0] == 0
    code, _, err = sdft("init", "--model", "./nowhere", "--out", "other.yaml")
    assert code == 2
    assert "no such folder" in err
    assert not (tmp_path / "other.yaml").exists()


def test_doctor_exits_with_2_where_nothing_can_run(sdft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdft import doctor

    findings = [
        doctor.Finding("ok", "Python"),
        doctor.Finding("missing", "a sandbox " * 12, "apt-get install bubblewrap"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    code, out, _ = sdft("doctor")
    assert code == 0
    assert out.splitlines()[0] == "ok       Python"
    assert out.splitlines()[-1] == "         → apt-get install bubblewrap"
    assert max(map(len, out.splitlines())) <= 80
    findings.append(doctor.Finding("broken", "torch", "pip install torch"))
    assert sdft("doctor")[0] == 2


def test_doctor_looks_at_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sdft import doctor

    monkeypatch.setenv("SDFT_DATA_DIR", str(tmp_path / "gone"))
    found = {finding.text.partition(":")[0].partition(" (")[0].split()[0]: finding for finding in doctor.examine()}
    assert {"Python", "packages", "device", "memory", "disk,", "datasets", "extra", "hub", "sandbox"} <= set(found)
    assert all(finding.state != "broken" for finding in found.values())
    assert "gone" in found["datasets"].text
    assert found["datasets"].mend


def test_recipe_schema_is_json(sdft: Run) -> None:
    code, out, _ = sdft("recipe-schema")
    assert code == 0
    assert json.loads(out)["properties"]["train"]


def test_check_names_missing_trackers(sdft: Run, recipe: Path) -> None:
    code, _, err = sdft("check", recipe, "train.report_to=[trackio]", "methods=[sft]")
    assert code == 2
    assert "pip install trackio" in err
    code, _, err = sdft("check", recipe, "train.report_to=[mlfow]", "methods=[sft]")
    assert code == 2 and "no tracker 'mlfow'; did you mean 'mlflow'?" in err


def test_check_looks_into_a_small_data_file(sdft: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"frage": "?", "antwort": "!"}\n', encoding="utf-8")
    code, _, err = sdft("check", recipe, f"data.dataset={tmp_path}/odd.jsonl")
    assert code == 2 and "odd.jsonl" in err and "frage" in err


def test_check_names_missing_data(sdft: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDFT_DATA_DIR", "")
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    code, _, err = sdft("check", recipe, "evaluate.benchmarks=[gsm8k]", f"data.dataset={tmp_path}/none.jsonl")
    assert code == 2
    assert "  - data: " in err
    code, _, err = sdft("check", recipe, "evaluate.benchmarks=[gsm8k]")
    assert code == 0
    assert re.search(r"^note: benchmark 'gsm8k': gsm8k_test: .* `sdft run` tries to fetch it$", err, re.MULTILINE)
    assert "gsm8k_test" in err


def test_check_holds_the_datasets_own_replies_to_the_checks(sdft: Run, recipe: Path, tmp_path: Path) -> None:
    with (tmp_path / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": "Why?", "output": "See the reference answer: 3."}\n')
        file.write('{"instruction": "How many?", "output": "None at all."}\n')
    code, _, err = sdft("check", recipe, "--data")
    assert code == 0
    assert "data: 14 examples; of their own replies 2 do not pass the checks" in err
    assert re.search(r"^row 12 \(\S+\): leak \(reference answer\): 'See the reference", err, re.MULTILINE)
    assert re.search(r"^row 13 \(\S+\): no_number", err, re.MULTILINE)
    assert sdft("check", recipe, "--data", "--strict")[0] == 2
    with (tmp_path / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write("{\n")
    code, _, err = sdft("check", recipe, "--data", "data.on_bad_rows=skip")
    assert code == 0
    assert "data: 14 examples (1 bad row skipped)" in err
    assert "skipped: " in err


def test_check_and_help_start_fast_without_torch(recipe: Path) -> None:
    used = (
        "import resource, sys\n"
        "def used():\n"
        "    spent = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'rich', 'jinja2', 'scipy', 'numpy'} & set(sys.modules)\n"
        "    print(spent.ru_utime + spent.ru_stime, heavy or None, file=sys.stderr)\n"
    )
    command = used + "from sdft.cli import main\ntry:\n    main()\nfinally:\n    used()"
    needed = used + "import pydantic.main, typer, yaml\nused()"

    def seconds(code: str, *arguments: str) -> float:
        """Processor time, the best of three: other users of the machine count little."""
        spent = []
        for _ in range(3):
            said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
            time_used, heavy = said.stderr.splitlines()[-1].split(maxsplit=1)
            assert heavy == "None"
            spent.append(float(time_used))
        return min(spent)

    # `make bench` measures seconds; here, on any machine: not much more than the packages that are needed anyway
    base = seconds(needed)
    assert seconds(command, "--help") < 2 * base
    assert seconds(command, "check", str(recipe)) < 3.5 * base


def test_render_meets_the_golden_prompts(sdft: Run) -> None:
    golden = data_folder("golden") / "golden/prompts.jsonl"
    cases = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    wanted = [case for case in cases if (case["file"], case["template"]) == ("gsm8k/gsm8k_train.json", "gsm8k")]
    rows = ",".join(str(case["row"]) for case in wanted)
    code, out, err = sdft("render", "--dataset", "gsm8k_train", "--template", "gsm8k", "--rows", rows, "--answer")
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"row": case["row"], "prompt": case["prompt"], "answer": case["answer"]}
        for case in sorted(wanted, key=lambda case: case["row"])
    ]


def test_render_takes_ranges_and_names_what_it_skips(sdft: Run, tmp_path: Path) -> None:
    lines = [{"instruction": f"Say {i}", "output": f"{i}" if i != 2 else ""} for i in range(6)]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code, out, err = sdft("render", "--dataset", tmp_path / "few.jsonl", "--template", "alpaca", "--rows", "0,2-4")
    assert code == 0
    assert [json.loads(line)["row"] for line in out.splitlines()] == [0, 3, 4]
    assert all(set(json.loads(line)) == {"row", "prompt"} for line in out.splitlines())
    assert err.startswith("skipped: ")
    assert "few.jsonl:3" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--template", "alpacka"], "did you mean 'alpaca'?"),
        (["--template", "plain"], "--model"),
        (["--template", "alpaca", "--rows", "1-x"], "'1-x' is neither a row"),
        (["--template", "alpaca", "--rows", "5-2"], "'5-2' ends before it begins; write 2-5"),
        (["--template", "alpaca", "--rows", "²"], "'²' is neither a row"),
        (["--template", "alpaca", "--rows", "9" * 5000], "is neither a row"),
        (["--template", "{{ instructon }}"], "unknown variable 'instructon'; did you mean 'instruction'?"),
        (["--template", "{% if %}"], "not a valid jinja template"),
        (["--template", "{% if history %}{{ reference }}{% else %}{{ system / 2 }}{% endif %}"], "fails when"),
        (
            ["--template", "{{ instruction[:1] }}{% if instruction != 'instruction' %}{{ 1 / 0 }}{% endif %}"],
            "not one row can be rendered, of 12; row 0: the template fails when it is rendered (division by zero)",
        ),
    ],
)
def test_render_says_what_is_wrong(sdft: Run, tmp_path: Path, options: list[str], said: str) -> None:
    scripted_recipe(tmp_path)
    code, out, err = sdft("render", "--dataset", tmp_path / "data.jsonl", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_render_may_leave_out_the_instruction_and_show_the_reference(sdft: Run, tmp_path: Path) -> None:
    scripted_recipe(tmp_path)
    code, out, _ = sdft("render", "--dataset", tmp_path / "data.jsonl", "--template", "{{ reference }}", "--rows", 0)
    assert code == 0
    assert json.loads(out)["prompt"]


def predictions(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "predictions.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_score_gives_the_same_rows_in_order_with_verdicts(sdft: Run, tmp_path: Path) -> None:
    rows = [{"label": "It is 7.", "predict": f"So {n}", "n": n} for n in (7, 8, 7, 9)]
    code, out, err = sdft("score", "--check", "number", predictions(tmp_path, *rows))
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [{key: row[key] for key in ("label", "predict", "n")} for row in found] == rows
    assert [row["verdict"]["ok"] for row in found] == [True, False, True, False]
    assert found[1]["verdict"] == {"ok": False, "reason": "number_differs", "detail": "8 for 7"}
    assert err == "50.00 % of 4 rows (95 % interval 15.00 to 85.00 %)\n"


def test_score_by_a_benchmarks_own_metric(sdft: Run, tmp_path: Path) -> None:
    rows = [
        {"label": 'find("cafe", near="here")', "predict": text}
        for text in ('find("cafe", near="here")', 'find("cafe","here")', "no")
    ]
    code, _, err = sdft("score", "--metric", "openfunction.positional", predictions(tmp_path, *rows))
    assert code == 0
    assert re.match(r"\d+\.\d\d % of 3 rows", err)
    assert sdft("score", "--metric", "openfunction", predictions(tmp_path, *rows))[2].startswith("33.33 % of 3")


def test_score_names_bad_lines(sdft: Run, tmp_path: Path) -> None:
    good = {"label": "7", "predict": "7"}
    path = predictions(tmp_path, good, "{", {"label": 7, "predict": "7"}, good)
    code, out, err = sdft("score", "--check", "number", path)
    assert code == 2
    assert len(out.splitlines()) == 2
    assert f"{path}:2: " in err
    assert f"{path}:3: label: " in err
    assert "100.00 % of 2 rows" in err


def test_score_reads_gz_and_a_bom_and_writes_valid_json(sdft: Run, tmp_path: Path) -> None:
    line = '{"label": "7", "predict": "7", "loss": NaN, "odd": [-Infinity, 1e999, 0.25]}\n'
    for name, data in (
        ("bom.jsonl", b"\xef\xbb\xbf" + line.encode()),
        ("rows.jsonl.gz", gzip.compress(line.encode())),
    ):
        (tmp_path / name).write_bytes(data)
        code, out, err = sdft("score", "--check", "number", tmp_path / name)
        assert (code, err.partition(" of")[0]) == (0, "100.00 %")
        assert "NaN" not in out and "Infinity" not in out
        assert json.loads(out)["loss"] is None
        assert json.loads(out)["odd"] == [None, None, 0.25]


def test_score_of_nothing_is_an_error(sdft: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    code, out, err = sdft("score", "--check", "number", tmp_path / "empty.jsonl")
    assert (code, out) == (2, "")
    assert f"{tmp_path}/empty.jsonl: no rows" in err


def test_score_judges_a_predictions_file_of_bfcl_as_eval_does(
    sdft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdft.benchmarks import BfclSimple
    from sdft.checks import CallAst
    from sdft.records import Example, Message

    accepted = {"name": "area", "arguments": {"base": [10], "unit": ["m", "metre", ""]}, "required": ["base"]}
    turn = Message(role="user", content="Find the area.")
    own = Example(id="simple_3", messages=(turn,), reference="area(base=10)", meta={"accepted": accepted})
    asked = []

    def examples(benchmark: BfclSimple) -> list[Example]:
        asked.append(benchmark.part)
        return [own]

    monkeypatch.setattr(BfclSimple, "examples", examples)
    monkeypatch.setattr(BfclSimple, "missing", lambda _: iter(()))
    row = {"id": "simple_3", "label": own.reference, "predict": 'area(base=10, unit="metre")'}
    assert BfclSimple().judge(own, row["predict"])[0].ok
    assert CallAst()(own, row["predict"]).ok
    path = predictions(tmp_path, row, row)
    code, out, err = sdft("score", "--metric", "bfcl_simple", path)
    assert (code, err.count("\n"), asked) == (0, 1, ["all"])
    assert [json.loads(line)["verdict"]["ok"] for line in out.splitlines()] == [True, True]
    other = predictions(tmp_path, row, {**row, "label": "area(base=9)"}, {**row, "id": "simple_4"})
    code, out, err = sdft("score", "--metric", "bfcl_simple", other)
    assert [json.loads(line)["verdict"]["ok"] for line in out.splitlines()] == [True, False, False]
    assert err.splitlines()[1].startswith("warning: 2 of them compared with the label alone")
    with_meta = predictions(tmp_path, {**row, "meta": {"accepted": accepted}}, row)
    code, out, err = sdft("score", "--check", "call_ast", with_meta)
    assert [json.loads(line)["verdict"]["ok"] for line in out.splitlines()] == [True, False]
    assert err.splitlines()[1].startswith("warning: 1 of them compared with the label alone")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metric", "reasoning_gym.own_score"], "cannot be told from a reply alone"),
        (["--check", "nubmer"], "did you mean 'number'?"),
        (["--metric", "gsm8k.acuracy"], "did you mean 'accuracy'?"),
        (["--metric", "drift.kl"], "cannot be told from a reply alone"),
        ([], "give either --check"),
    ],
)
def test_score_says_what_is_wrong(sdft: Run, tmp_path: Path, options: list[str], said: str) -> None:
    code, _, err = sdft("score", *options, predictions(tmp_path, {"label": "7", "predict": "7"}))
    assert code == 2
    assert said in err
    assert sdft("score", "--check", "number", tmp_path / "none.jsonl")[0] == 2


def test_score_agrees_with_the_reference(sdft: Run, tmp_path: Path) -> None:
    golden = data_folder("golden") / "golden/verdicts.jsonl"
    cases = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    numbers = [case for case in cases if case["check"] == "number" and "error" not in case]
    code, out, _ = sdft("score", "--check", "number", predictions(tmp_path, *numbers))
    assert code == 0
    differing = [
        row
        for row in map(json.loads, out.splitlines())
        if row["verdict"]["ok"] != row["expected"] and row["verdict"]["reason"] != "no_number"
    ]
    assert differing == []


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("datasets", "gsm8k_train"),
        ("templates", "gsm8k_distill"),
        ("checks", "leak"),
        ("engines", "scripted"),
        ("benchmarks", "drift"),
        ("methods", "sdft"),
    ],
)
def test_list(sdft: Run, kind: str, known: str) -> None:
    code, out, err = sdft("list", kind)
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if line.split()[0] == known]
    assert len(line.split()) > 1, "a name without a word about it"


def test_list_recipes_finds_those_here_and_those_shipped(
    sdft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/own.yaml").write_text("# A recipe of one's own.\nmodel: some/model\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, out, _ = sdft("list", "recipes")
    assert code == 0
    assert re.search(r"^own +A recipe of one's own\.$", out, re.MULTILINE)
    shipped = Path(__file__).parents[1] / "recipes"
    names = {path.relative_to(shipped).with_suffix("").as_posix() for path in shipped.glob("**/*.yaml")}
    assert {line.split()[0] for line in out.splitlines()} == {
        "own", *(name for name in names if not name.endswith("base"))
    }  # fmt: skip
    assert sdft("check", "own", "methods=[]")[0] == 0


def test_a_bug_keeps_its_traceback(sdft: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdft.stages import distill

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(distill, "run_data", broken)
    with pytest.raises(ZeroDivisionError):
        sdft("run", recipe)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_exits_130_and_says_how_to_go_on(recipe: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "sdft.cli", "run", str(recipe), "distill.engine.latency=0.2"]

    def heed_ctrl_c() -> None:  # a shell's background job, and so what it starts, ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    ) as process:
        rewrites = recipe.parent / "runs/mine/distill/rewrites.jsonl"
        deadline = time.monotonic() + 30
        while not (rewrites.exists() and rewrites.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"sdft run {recipe} distill.engine.latency=0.2` goes on from here" in err
    assert rewrites.stat().st_size > 0
