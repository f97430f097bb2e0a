from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdft.data import BadRow, DataConfig, iter_examples, load_examples
from sdft.data import files as files_module
from sdft.data.files import SUFFIXES, Row, read_file
from sdft.errors import DataError

ROWS = [{"instruction": f"Say {i}", "output": f"{i}é"} for i in range(5)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    name = path.name
    if ".jsonl" in name:
        data = jsonl(rows)
    elif ".csv" in name:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        data = buffer.getvalue().encode()
    elif name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    else:
        data = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    found = list(read_file(path))
    assert [row.value for row in found if isinstance(row, Row)] == ROWS
    first = 2 if ".csv" in suffix else 1
    assert [row.line for row in found] == list(range(first, first + 5))
    assert [e.reference for e in load_examples(str(path))] == ["0é", "1é", "2é", "3é", "4é"]


def bad_rows(path: Path, **settings: Any) -> tuple[int, list[BadRow]]:
    bad: list[BadRow] = []
    config = DataConfig(dataset=str(path), on_bad_rows="skip", **settings)
    return len(list(iter_examples(config, bad))), bad


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [
        b'{"instruction": "a", "output": "b"}',
        b'{"instruction": "a", "outp',
        b'{"instruction": "a", "output": "caf\xe9"}',
        b"[1]",
        b"",
        b'{"instruction": "a"}',
        b'{"id": "x", "instruction": "a", "output": "b"}',
        b'{"id": "x", "instruction": "a", "output": "c"}',
        b'{"instruction": "a", "output": "' + b"x" * 2000 + b'"}',
        b'{"instruction": "a", "output": ' + b"[" * 100_000,
        b'{"instruction": "a", "output": "b"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "MAX_ROW_CHARS", 1000)
        count, bad = bad_rows(path)
    assert count == 3
    whys = {row.line: row.why for row in bad}
    assert all(row.file == str(path) for row in bad)
    assert list(whys) == [2, 3, 4, 6, 8, 9, 10]
    assert "not valid JSON" in whys[2]
    assert "not UTF-8" in whys[3]
    assert "not an object" in whys[4]
    assert "no column 'output'" in whys[6]
    assert "'x' was used in line 7" in whys[8]
    assert "over-long" in whys[9] and "over-long" in whys[10]
    deep = tmp_path / "deep.jsonl"
    deep.write_bytes(lines[0] + b"\n" + lines[9])
    assert "JSON" in bad_rows(deep)[1][0].why


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_column_of_broken_json_is_one_of_its_own_line(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "a", "output"' + end + b'{"instruction": "a", "output": "b"}' + end)
    _, bad = bad_rows(path)
    assert [(row.line, row.why) for row in bad] == [(1, "not valid JSON (Expecting ':' delimiter at column 30)")]


def test_error_mode_yields_the_good_rows_then_names_the_first_ten(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([*ROWS, *({"instruction": "a", "output": ""} for _ in range(12))]))
    good = []
    with pytest.raises(DataError) as error:
        for example in iter_examples(DataConfig(dataset=str(path))):
            good.append(example)
    assert len(good) == 5
    message = str(error.value)
    assert "12 bad rows" in message and "on_bad_rows=skip" in message and "and 2 more" in message
    assert f"{path}:6: the reply is empty" in message and f"{path}:15:" in message and f"{path}:16:" not in message
    assert len(load_examples(str(path), limit=5)) == 5, "rows behind the limit are not looked at"
    with pytest.raises(DataError, match="12 bad rows"):
        load_examples(str(path), limit=6)


def test_a_dataset_without_one_good_row_is_an_error_in_skip_mode_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([{"instruction": "a", "output": ""}]))
    with pytest.raises(DataError, match="the reply is empty"):
        bad_rows(path)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="no rows"):
        bad_rows(path)


def test_a_json_file_that_is_not_whole_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps(ROWS, indent=1).encode()[:-20])
    with pytest.raises(DataError, match=r"rows\.json:\d+: not valid JSON"):
        load_examples(str(path))
    path.write_bytes(b'[\n{"instruction": "caf\xe9", "output": "x"}]')
    with pytest.raises(DataError, match=r"rows\.json:2: not UTF-8"):
        load_examples(str(path))
    path.write_bytes(b"3")
    with pytest.raises(DataError, match="one int"):
        load_examples(str(path))


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS))
    assert len(load_examples(str(path))) == 5


def test_csv_rows_are_counted_by_line_and_bad_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'instruction,output\n"a\nb",c\nonly\nd,caf\xe9\n"e"x,f\ng,h\n\n"open,')
    count, bad = bad_rows(path)
    assert count == 2
    assert [(row.line, row.why.split(" (")[0]) for row in bad] == [
        (4, "1 cells; the header has 2"),
        (5, "not UTF-8"),
        (6, "not valid CSV"),
        (9, "not valid CSV"),
    ]
    for header in (b"", b"a,a\n1,2\n", b"\xe9,b\n1,2\n"):
        path.write_bytes(header)
        with pytest.raises(DataError, match="names the columns"):
            load_examples(str(path))


def test_an_open_quote_in_a_csv_is_an_error_and_no_single_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rest = b"good,row\n" * 1000
    path.write_bytes(b'instruction,output\ngood,row\n"open,x\n' + rest)
    with pytest.raises(
        DataError, match=r"rows\.csv:3: a quote opens .* 1,000 lines behind it cannot be read; close it"
    ):
        bad_rows(path)
    with pytest.MonkeyPatch.context() as patch:  # where the limit of a cell comes before the end of the file
        patch.setattr(files_module, "MAX_ROW_CHARS", 100)
        with pytest.raises(DataError, match=r"rows\.csv:3: a quote opens .* 1,000 lines"):
            bad_rows(path)
    path.write_bytes(b'instruction,output\n"open,x\na,b\n"closed by chance",c\nd,e\n')
    count, [bad] = bad_rows(path)
    assert (count, bad.line) == (1, 2)
    assert bad.why.endswith("; lines 2 to 4 are lost with it")


def test_a_history_in_a_csv_is_json(tmp_path: Path) -> None:
    history = [["Hi", "Hello"], ["And?", 'So "so"']]
    rows = [{"instruction": "a", "output": "b", "history": text} for text in (json.dumps(history), "")]
    first, second = load_examples(str(write(tmp_path / "rows.csv", rows)))
    assert [turn.content for turn in first.history] == ["Hi", "Hello", "And?", 'So "so"']
    assert first.meta["row"] == rows[0]
    assert second.history == ()
    odd = ["Hi", "[Hi", '["Hi"]', json.dumps([["\ud800", "x"]]), "[" * 100_000]
    rows = [{"instruction": "a", "output": "b", "history": text} for text in odd]
    with pytest.raises(DataError) as error:
        load_examples(str(write(tmp_path / "odd.csv", rows)))
    whys = [line.partition(".csv:")[2][3:] for line in str(error.value).splitlines()[1:]]
    text = "column 'history' is text, not a list of [prompt, reply]"
    assert [whys[index] for index in (0, 1, 2, 4)] == [text, text, "item 1 of 'history' is not [prompt, reply]", text]
    assert "not valid Unicode" in whys[3]


@pytest.mark.parametrize(
    "data", [json.dumps({"data": ROWS}, indent=1), '{"data": [\n' + json.dumps(ROWS[0]) + "]}", '{\n"data": [{"a": 1'],
)  # fmt: skip
def test_a_json_file_of_one_object_is_named_once(tmp_path: Path, data: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(data, encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_examples(str(path))
    assert str(error.value).startswith(f"{path}: a .json dataset is a list of objects; this file holds one object")
    assert "\n" not in str(error.value)
    path.write_bytes(b'{"instruction": "a"\n' + jsonl(ROWS))
    assert bad_rows(path)[0] == 5, "JSON lines, the first of them broken"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named_once_with_what_to_do(tmp_path: Path, suffix: str, encoding: str) -> None:
    data = ("\ufeff" + jsonl(ROWS).decode()).encode(encoding)
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    with pytest.raises(DataError, match="the file is in UTF-16; convert it to UTF-8"):
        bad_rows(path)


def test_long_csv_cells_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [{"instruction": "a", "output": "x" * 200_000}])
    assert len(load_examples(str(path))[0].reference) == 200_000


def test_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    for name, data in (("a.parquet", b"PAR1 no"), ("a.jsonl.gz", b"no gzip"), ("a.json", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            load_examples(str(tmp_path / name))
    whole = gzip.compress(jsonl(ROWS * 50))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz"):
        load_examples(str(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(DataError, match="no such file"):
        load_examples(str(tmp_path / "none.json"))


def test_parquet_values_come_in_jsons_own_types(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"instruction": "a", "output": "b", "day": datetime.date(2024, 1, 2), "raw": b"\xff", "mark": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (example,) = load_examples(str(tmp_path / "a.parquet"))
    assert example.meta["row"]["day"] == "2024-01-02"
    assert example.model_validate_json(example.model_dump_json()) == example


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if not s.endswith(".gz")])
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_random_bytes_never_raise_anything_but_a_data_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data)
    bad: list[BadRow] = []
    try:
        for _ in iter_examples(DataConfig(dataset=str(path), on_bad_rows="skip"), bad):
            pass
    except DataError as error:
        assert str(error)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_damaged_lines_never_hide_the_others(tmp_path: Path, data: st.DataObject) -> None:
    lines = jsonl(ROWS).splitlines()
    at = data.draw(st.integers(0, 4))
    junk = data.draw(st.binary(max_size=30)).replace(b"\n", b"").replace(b"\r", b"")
    lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at]) - 1))] + junk
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    count, bad = bad_rows(path)
    blank = not lines[at].removeprefix(b"\xef\xbb\xbf").strip() if at == 0 else not lines[at].strip()
    assert count + len(bad) == 5 - blank
    assert count >= 4
    assert all(row.line == at + 1 for row in bad)


def test_equal_rows_get_ids_of_their_own_that_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([ROWS[0], ROWS[1], ROWS[0], ROWS[0]]))
    ids = [e.id for e in load_examples(str(path))]
    assert ids == [ids[0], ids[1], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert [e.id for e in load_examples(str(path))] == ids


def test_ids_that_stand_twice_can_be_turned_off(tmp_path: Path) -> None:
    rows = [{"task_id": "a", "instruction": f"Say {i}", "output": "x"} for i in range(3)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"'a' was used in line 1 already \(data\.columns\.id=null ignores ids\)"):
        load_examples(str(path))
    examples = load_examples(DataConfig(dataset=str(path), columns={"id": None}))
    assert [example.instruction for example in examples] == ["Say 0", "Say 1", "Say 2"]
    assert len({example.id for example in examples}) == 3
    by_column = {"prompt": "instruction", "response": "output", "id": None}
    assert load_examples(DataConfig(dataset=str(path), columns=by_column)) == examples
    with pytest.raises(DataError, match="no column for 'response'"):
        load_examples(DataConfig(dataset=str(path), columns={"prompt": "instruction", "response": None}))


def test_limit_slices_and_shuffle(tmp_path: Path) -> None:
    rows = [{"id": i, "instruction": f"Say {i}", "output": "x"} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(rows))

    def ids(**options: Any) -> list[int]:
        return [int(e.id) for e in iter_examples(DataConfig(dataset=str(path), **options))]

    every = list(range(20))
    assert ids(split="train[:90%]") == every[:18] and ids(split="train[90%:]") == every[18:]
    assert ids(split="train[5:8]") == every[5:8] and ids(split="train[-3:]") == every[-3:]
    assert ids(split="train[ : ]", limit=2) == every[:2]
    assert ids(split="train[15:100]", limit=3) == [15, 16, 17]
    shuffled = ids(shuffle=True, seed=1)
    assert sorted(shuffled) == every and shuffled != every
    assert ids(shuffle=True, seed=1) == shuffled and ids(shuffle=True, seed=2) != shuffled
    first, rest = ids(shuffle=True, split="train[:80%]"), ids(shuffle=True, split="train[80%:]")
    assert sorted(first + rest) == every and first + rest == ids(shuffle=True)
    for split, words in (
        ("test", "no split 'test'"),
        ("train[1-2]", "not of the form"),
        ("train[:5", "not of the form"),
    ):
        with pytest.raises(DataError, match=words.replace("[", r"\[")):
            ids(split=split)


def test_rows_behind_the_limit_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(ROWS) + b"\xff broken\n" * 3)
    assert len(load_examples(DataConfig(dataset=str(path), split="train[1:4]"))) == 3
    assert len(load_examples(DataConfig(dataset=str(path), limit=5))) == 5
