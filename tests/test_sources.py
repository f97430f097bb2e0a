"""Where datasets come from: the registry, downloads, dataset_info.json, and the hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers_data import data_folder
from sdft.data import DataConfig, load_examples, missing, registered, unfetched
from sdft.data import registry as registry_module
from sdft.data import sources as sources_module
from sdft.data.download import download
from sdft.data.registry import RegistryEntry, fetch
from sdft.errors import DataError

NAMES = {
    *(f"{name}_train" for name in ("gsm8k", "openfunction", "alpaca", "dolly", "lima", "magicoder", "openhermes")),
    *("gsm8k_test", "multiarith_test", "openfunction_test", "alpaca_eval", "advbench", "xstest"),
}
UNSEEN = {"magicoder_train", "openhermes_train", "xstest"}
"""Files whose hash is not known."""


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads from a server of the test's own are wanted here."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_the_registry_has_the_references_names_and_pinned_sources() -> None:
    assert set(registered()) == NAMES
    for name, entry in registered().items():
        commit = entry.url.split("/")[5]
        assert len(commit) == 40 and set(commit) <= set("0123456789abcdef"), name
        assert entry.url.endswith(entry.file)
        assert entry.sha256 is None or len(entry.sha256) == 64
    assert {name for name, entry in registered().items() if entry.sha256 is None} == UNSEEN


@pytest.mark.parametrize("name", sorted(NAMES - UNSEEN))
def test_reference_data_has_the_reported_rows_and_the_pinned_hash(name: str) -> None:
    entry = registered()[name]
    folder = data_folder(entry.file)
    assert hashlib.sha256((folder / entry.file).read_bytes()).hexdigest() == entry.sha256
    examples = load_examples(name)
    assert len(examples) == entry.rows == len({example.id for example in examples})
    assert unfetched(DataConfig(dataset=name)) is None


def test_gsm8k_rows_and_lima_turns() -> None:
    data_folder("gsm8k/gsm8k_train.json")
    first = load_examples("gsm8k_train", limit=1)[0]
    assert first.instruction.startswith("Natalia sold clips") and first.reference.endswith("The answer is 72.")
    assert first.meta["reply_column"] == "answer" and set(first.meta["row"]) == {"question", "answer"}
    lima = load_examples("lima_train")
    several = [example for example in lima if example.history]
    assert len(several) == 29
    assert [turn.role for turn in several[0].history] == ["user", "assistant"]


def test_the_references_dataset_info_gives_the_same_rows_as_the_registry() -> None:
    folder = data_folder("dataset_info.json")
    for name in ("gsm8k_test", "lima_train", "advbench", "alpaca_train"):
        by_name = load_examples(name, limit=20)
        assert load_examples(f"{folder}:{name}", limit=20) == by_name
        assert load_examples(f"{folder}/dataset_info.json:{name}", limit=20) == by_name
    assert len(load_examples(f"{folder}:distilled_alpaca")) == 2000
    with pytest.raises(DataError, match="did you mean 'gsm8k_train'"):
        load_examples(f"{folder}:gsm8k_trian")
    with pytest.raises(DataError, match=r"magicoder_train\.json is not there"):
        load_examples(f"{folder}:magicoder_train")
    with pytest.raises(DataError, match=":NAME"):
        load_examples(f"{folder}/dataset_info.json")


def info(folder: Path, **entries: Any) -> str:
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder)


def test_dataset_info_with_tags_formats_and_folders(tmp_path: Path) -> None:
    talk = [{"who": "Q", "said": "Hi"}, {"who": "A", "said": "Hello"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"talk": talk, "sys": "Be kind."}) + "\n", encoding="utf-8")
    (tmp_path / "parts").mkdir()
    for name in ("b", "a"):
        row = {"instruction": name, "output": "x", "input": ""}
        (tmp_path / "parts" / f"{name}.json").write_text(json.dumps([row]), encoding="utf-8")
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A"}
    columns = {"messages": "talk", "system": "sys"}
    folder = info(
        tmp_path,
        talk={"file_name": "talk.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags},
        parts={"file_name": "parts"},
        odd={"file_name": "talk.jsonl", "formatting": "parquet"},
        pairs={"file_name": "talk.jsonl", "ranking": True},
        nowhere={"columns": {}},
        broken={"file_name": "talk.jsonl", "columns": ["a"]},
    )
    (example,) = load_examples(f"{folder}:talk")
    assert (example.system, example.instruction, example.reference) == ("Be kind.", "Hi", "Hello")
    assert [e.instruction for e in load_examples(f"{folder}:parts")] == ["a", "b"]
    for name, words in (
        ("odd", "unknown formatting"),
        ("pairs", "preference"),
        ("nowhere", "neither file_name nor hf_hub_url"),
        ("broken", "not laid out"),
    ):
        with pytest.raises(DataError, match=words):
            load_examples(f"{folder}:{name}")
    (tmp_path / "dataset_info.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(DataError, match="not laid out"):
        load_examples(f"{folder}:talk")


def test_dataset_info_may_want_fewer_rows_and_no_ids(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {number}", "output": "x", "id": "same"} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    file = {"file_name": "rows.jsonl"}
    folder = info(tmp_path, few={**file, "num_samples": 3}, many={**file, "num_samples": 9}, odd={"num_samples": "3"})
    config = DataConfig(dataset=f"{folder}:few", columns={"id": None})
    assert [example.instruction for example in load_examples(config)] == ["Say 0", "Say 1", "Say 2"]
    assert len(load_examples(config.model_copy(update={"dataset": f"{folder}:many"}))) == 5
    with pytest.raises(DataError, match=r"few: 2 bad rows(.|\n)*data\.columns\.id=null"):
        load_examples(f"{folder}:few")
    with pytest.raises(DataError, match="num_samples is a number of rows, not '3'"):
        load_examples(f"{folder}:odd")


def test_a_file_of_another_kind_is_no_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDFT_DATA_DIR", str(tmp_path / "data"))
    for place in ("d", "data/e"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "rows.tsv").write_text("instruction\toutput\n", encoding="utf-8")
    for name in ("d/rows.tsv", "e/rows.tsv"):
        config = DataConfig(dataset=name)
        with pytest.raises(DataError, match=r"rows\.tsv: cannot tell the kind of file; there are: \.json, .*\.csv\.gz"):
            load_examples(config)
        assert "cannot tell the kind of file" in str(missing(config)), "`sdft check` says so, too"


def test_hub_datasets_go_through_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, subset: str | None, **options: Any) -> Any:
        asked.append((name, subset, options))
        if name == "no/thing":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/thing' doesn't exist on the Hub")
        return datasets.Dataset.from_list([{"question": f"q{i}", "answer": "a"} for i in range(10)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(
        dataset="openai/gsm8k",
        subset="main",
        revision="abc",
        split="test[:50%]",
        columns={"prompt": "question", "response": "answer"},
    )
    assert [e.instruction for e in load_examples(config)] == [f"q{i}" for i in range(5)]
    columns = {"prompt": "question", "response": "answer"}
    folder = info(tmp_path, g={"hf_hub_url": "openai/gsm8k", "subset": "main", "split": "test", "columns": columns})
    assert len(load_examples(DataConfig(dataset=f"{folder}:g", split="train[2:]"))) == 8
    assert asked == [
        ("openai/gsm8k", "main", {"split": "test", "revision": "abc"}),
        ("openai/gsm8k", "main", {"split": "test", "revision": None}),
    ]
    with pytest.raises(DataError, match=r"no/thing: .*data\.subset"):
        load_examples("no/thing")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dataset": "gsm8k"}, "did you mean 'gsm8k_t"),
        ({"dataset": "nothing like it"}, "there are: "),
        ({"dataset": "gsm8k_train", "options": {"size": 3}}, "generated datasets"),
        ({"dataset": "gsm8k_train", "split": "test"}, "no split 'test'"),
        ({"dataset": "nowhere/rows.jsonl"}, "no such file"),
        ({"dataset": "reasoning_gym", "format": "alpaca", "options": {"task": "x", "size": 1}}, "no format"),
    ],
)
def test_what_cannot_be_found_says_so_and_missing_agrees(config: dict[str, Any], words: str) -> None:
    parsed = DataConfig.model_validate(config)
    with pytest.raises(DataError) as error:
        load_examples(parsed)
    assert words in str(error.value)
    assert missing(parsed) == str(error.value)


def test_files_are_found_in_the_data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    row = {"instruction": "a", "output": "b"}
    (tmp_path / "mine" / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    monkeypatch.setenv("SDFT_DATA_DIR", f"{tmp_path / 'none'}:{tmp_path}")
    assert len(load_examples("mine/rows.jsonl")) == 1


def test_bad_rows_of_a_first_row_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([3, {"instruction": "a", "output": "b"}]), encoding="utf-8")
    assert len(load_examples(DataConfig(dataset=str(path), on_bad_rows="skip"))) == 1
    with pytest.raises(DataError, match=r"rows\.json:1: the row is not an object"):
        load_examples(str(path))


# Downloads

BODY = json.dumps([{"question": f"What is {i}?", "answer": str(i)} for i in range(5000)]).encode()
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY, as far as each answer of `script` lets it; then all of it."""

    daemon_threads = True

    def __init__(self, script: list[int | str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/data/rows.json"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        step = self.server.script.pop(0) if self.server.script else len(BODY)
        if step == "404":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and step != "whole" else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        rest = BODY[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: step if isinstance(step, int) else None])

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(*script: int | str) -> Iterator[Server]:
    server = Server(list(script))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_cut_connection_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "rows.json"
    with serving(70_000, 30_000) as server:
        download(server.url, target, SHA)
    assert server.ranges == [None, "bytes=70000-", "bytes=100000-"]
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["rows.json"]


def test_a_download_goes_on_after_the_server_was_away(tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    with serving(50_000, 0) as server, pytest.raises(DataError, match="50000 bytes are kept"):
        download(server.url, target, SHA)
    assert not target.exists()
    with serving() as server:
        download(server.url, target, SHA)
    assert server.ranges == ["bytes=50000-"]
    assert target.read_bytes() == BODY


def test_a_server_that_sends_all_again_and_a_part_that_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    part = tmp_path / "rows.json.part"
    part.write_bytes(b"something else")
    with serving("whole") as server:
        download(server.url, target, SHA)
    assert server.ranges == ["bytes=14-"] and target.read_bytes() == BODY
    target.unlink()
    part.write_bytes(BODY)
    with serving() as server:
        download(server.url, target, SHA)
    assert target.read_bytes() == BODY


def test_a_wrong_hash_is_thrown_away_and_named(tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    with serving() as server, pytest.raises(DataError, match=f"sha256 {SHA}, expected {'0' * 64}"):
        download(server.url, target, "0" * 64)
    assert not target.exists()
    with serving() as server:
        download(server.url, target, SHA)
    assert server.ranges == [None], "nothing of the wrong file is left to go on from"
    (tmp_path / "rows.json.part").unlink(missing_ok=True)
    with serving("404") as server, pytest.raises(DataError, match="answers 404"):
        download(server.url, tmp_path / "other.json", SHA)


def test_two_downloads_at_once_end_with_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    with serving() as server:
        threads = [threading.Thread(target=download, args=(server.url, target, SHA)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert target.read_bytes() == BODY
    assert server.ranges == [None], "the others waited for the first"


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RegistryEntry:
    """A registered dataset `sums`, with an empty cache and no data folder; nothing listens at its address."""
    with serving() as server:
        url = server.url
    made = RegistryEntry(
        description="Sums",
        rows=5000,
        file="sums/rows.json",
        columns={"prompt": "question", "response": "answer"},
        url=url,
        sha256=SHA,
    )
    for module in (registry_module, sources_module):
        monkeypatch.setattr(module, "registered", lambda: {"sums": made})
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SDFT_DATA_DIR", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return made


def test_offline_the_error_says_which_file_to_put_where(
    entry: RegistryEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError) as error:
        load_examples("sums")
    for words in ("sums/rows.json", "SDFT_DATA_DIR", str(tmp_path / "cache/data/sums/rows.json"), entry.url, "refused"):
        assert words in str(error.value)
    assert str(unfetched(DataConfig(dataset="sums"))) in str(error.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        load_examples("sums")
    folder = tmp_path / "data" / "sums"
    folder.mkdir(parents=True)
    (folder / "rows.json").write_bytes(BODY)
    monkeypatch.setenv("SDFT_DATA_DIR", f"{tmp_path / 'nowhere'}:{tmp_path / 'data'}")
    assert len(load_examples("sums")) == 5000


def test_the_cache_is_filled_once_and_a_spoilt_file_in_it_is_replaced(entry: RegistryEntry, tmp_path: Path) -> None:
    cached = tmp_path / "cache/data/sums/rows.json"
    with serving() as server:
        here = entry.model_copy(update={"url": server.url})
        assert fetch("sums", here) == cached
        assert fetch("sums", here) == cached
        assert len(server.ranges) == 1
        cached.write_bytes(b"spoilt")
        assert "neither" in str(unfetched(DataConfig(dataset="sums")))
        assert fetch("sums", here).read_bytes() == BODY
    assert unfetched(DataConfig(dataset="sums")) is None
    assert load_examples("sums", limit=2)[1].reference == "1"
