"""The run folder: JSONL files that survive a kill, markers, the lock."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_pipeline import rewrite
from sdft.errors import RunError
from sdft.records import Rewrite
from sdft.rundir import (
    JsonlWriter,
    RunDir,
    atomic_write,
    changes,
    count_lines,
    digest,
    read_json,
    read_jsonl,
    seed_for,
    write_jsonl,
)

texts = st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8)


@given(texts=texts, cut=st.integers(min_value=0))
def test_any_prefix_of_a_jsonl_file_can_be_gone_on_from(texts: list[str], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rewrites.jsonl"
        wanted = [rewrite(number, text) for number, text in enumerate(texts)]
        write_jsonl(path, wanted)
        whole = path.read_bytes()
        path.write_bytes(whole[: cut % (len(whole) + 1)])
        with JsonlWriter(path) as writer:
            done = {found.example_id for found in read_jsonl(path, Rewrite)}
            for record in wanted:
                if record.example_id not in done:
                    writer.write(record)
        assert path.read_bytes() == whole
        assert count_lines(path) == len(wanted)


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    write_jsonl(path, [rewrite(0, "whole")])
    with path.open("ab") as file:
        file.write(b'{"example_id": "e1", "candi')
    assert [found.text for found in read_jsonl(path, Rewrite)] == ["whole"]


@pytest.mark.parametrize("line", [b"not json\n", b'{"example_id": "e1"}\n', b"\xff\xfe\n", b'{"other": 1}\n'])
def test_a_broken_line_is_named_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rewrites.jsonl"
    write_jsonl(path, [rewrite(0, "whole")])
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(RunError, match=r"rewrites\.jsonl:2: not a Rewrite"):
        list(read_jsonl(path, Rewrite))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing; run the stage"):
        list(read_jsonl(tmp_path / "none.jsonl", Rewrite))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        list(read_jsonl(tmp_path / "folder.jsonl", Rewrite))
    (tmp_path / "broken.json").write_bytes(b"{")
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path / "broken.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    write_jsonl(path, [rewrite(0, "whole")])
    path.chmod(0)
    with pytest.raises(RunError, match="Permission denied"):
        list(read_jsonl(path, Rewrite))


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["small.json"]


def test_seeds_depend_on_every_part_and_nothing_else() -> None:
    seeds = [
        seed_for(0, "distill", "a", 0),
        seed_for(1, "distill", "a", 0),
        seed_for(0, "eval", "a", 0),
        seed_for(0, "distill", "b", 0),
        seed_for(0, "distill", "a", 1),
        seed_for(0, "distill", "a0"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == seed_for(0, "distill", "a", 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_digest_does_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


def test_changes_name_the_innermost_keys() -> None:
    old = {"train": {"epochs": 5, "lora": {"r": 8}}, "seed": 0}
    new = {"train": {"epochs": 1, "lora": {"r": 8}}, "seed": 0, "more": True}
    assert changes(old, new) == {"train.epochs": (5, 1), "more": (None, True)}
    assert changes(old, old) == {}


def test_a_marker_is_finished_only_for_its_own_inputs(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.check("train/sft", {"seed": 0})
    run.claim("train/sft", {"seed": 0})
    assert not run.is_finished("train/sft", {"seed": 0})
    (tmp_path / "out").write_text("x", encoding="utf-8")
    run.finish("train/sft", {"seed": 0}, 1.0, ["a note"], [tmp_path / "out"], [tmp_path / "out"])
    assert run.is_finished("train/sft", {"seed": 0})
    assert not run.is_finished("train/sft", {"seed": 1})
    with pytest.raises(RunError, match=r"train/sft.*seed: 0 → 1.*name=NAME.*--redo train/sft"):
        run.check("train/sft", {"seed": 1})
    run.check("train/sft", {"seed": 1}, lambda key, then, now: (key, then, now) == ("seed", 0, 1))


def test_forgetting_deletes_marker_and_files(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim("select", {})
    (tmp_path / "select").mkdir()
    (tmp_path / "select/choices.jsonl").write_text("", encoding="utf-8")
    run.forget("select", tmp_path / "select")
    assert run.stage_state("select") is None
    assert not (tmp_path / "select").exists()


def test_two_processes_on_one_run_the_second_is_refused(tmp_path: Path) -> None:
    hold = (
        f"from sdft.rundir import RunDir\nwith RunDir({str(tmp_path)!r}):\n    print('held', flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"another process \(pid {process.pid}\)"), RunDir(tmp_path):
            pass
        process.kill()
    with RunDir(tmp_path):  # a killed process leaves no lock behind
        pass
