"""Rows as their authors publish them become the reference's rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers_checks import data_file
from sdft.data import DataConfig, hub_note, load_examples, unfetched
from sdft.data import hub as hub_module
from sdft.data import registry as registry_module
from sdft.data import sources as sources_module
from sdft.data.conversions import dolly, gsm8k, magicoder, openhermes
from sdft.data.formats import UnusableRow
from sdft.data.registry import HubSource, RegistryEntry, fetch, registered
from sdft.errors import DataError
from sdft.inspection import failing_golds
from sdft.recipe import load_recipe

OFFICIAL = {  # the number of a row in GSM8K's training split → its answer as published
    0: "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    1: "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
    "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    2: "In the beginning, Betty has only 100 / 2 = $<<100/2=50>>50.\n"
    "Betty's grandparents gave her 15 * 2 = $<<15*2=30>>30.\n"
    "This means, Betty needs 100 - 50 - 30 - 15 = $<<100-50-30-15=5>>5 more.\n#### 5",
    3: "Maila read 12 x 2 = <<12*2=24>>24 pages today.\n"
    "So she was able to read a total of 12 + 24 = <<12+24=36>>36 pages since yesterday.\n"
    "There are 120 - 36 = <<120-36=84>>84 pages left to be read.\n"
    "Since she wants to read half of the remaining pages tomorrow, then she should read 84/2 = <<84/2=42>>42 pages.\n"
    "#### 42",
    4: "He writes each friend 3*2=<<3*2=6>>6 pages a week\n"
    "So he writes 6*2=<<6*2=12>>12 pages every week\n"
    "That means he writes 12*52=<<12*52=624>>624 pages a year\n#### 624",
    8: "Let S be the amount Alexis paid for the shoes.\n"
    "She spent S + 30 + 46 + 38 + 11 + 18 = S + <<+30+46+38+11+18=143>>143.\n"
    "She used all but $16 of her budget, so S + 143 = 200 - 16 = 184.\n"
    "Thus, Alexis paid S = 184 - 143 = $<<184-143=41>>41 for the shoes.\n#### 41",
    15: "He sold each DVD for 6*2.5=$<<6*2.5=15>>15\n"
    "So he makes a profit of 15-6=$<<15-6=9>>9\n"
    "So each day he makes a profit of 9*500=$<<9*500=4500>>4500\n"
    "So he makes 4500*5=$<<4500*5=22500>>22,500\n"
    "He makes 22,500*20=$<<22500*20=450000>>450,000\n"
    "Then after the cost of creating the movie he has a profit of 450,000-2000=$<<450000-2000=448000>>448,000\n"
    "#### 448000",
    20: "The number of truck stamps is 11 + 9 = <<11+9=20>>20.\n"
    "The number of rose stamps is 20 − 13 = <<20-13=7>>7.\n"
    "Bella bought 11 + 20 + 7 = <<11+20+7=38>>38 stamps in all.\n#### 38",
}
STORE = {
    "question": "Barney's grocery store sold out all of its items at the beginning of the pandemic, so they ordered "
    "extra items to restock the shelves. However, they ended up ordering far too much and have to keep the leftover "
    "items in the storeroom. If they ordered 4458 items, sold another 1561 items that day, and have 575 items in the "
    "storeroom, how many items do they have left in the whole store?",
    "answer": "Barney's grocery store started with 0 items + 4458 they ordered = <<0+4458=4458>>4458 items total.\n"
    "That day they sold 1561 items, so 4458 total - 1561 sold = <<4458-1561=2897>>2897 items.\n"
    "If there are 575 items in the storeroom, then there are 575 + 2897 = <<575+2897=3472>>3472 items in the whole "
    "store.\n#### 3,472",
}


def reference_rows(split: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(data_file(f"gsm8k/gsm8k_{split}.json").read_text(encoding="utf-8"))
    return rows


def test_official_gsm8k_rows_become_the_references_rows_to_the_letter() -> None:
    rows = reference_rows("train")
    for number, answer in OFFICIAL.items():
        assert gsm8k({"question": rows[number]["question"], "answer": answer}) == rows[number]
    assert gsm8k(STORE) in rows


def test_all_rows_of_the_references_gsm8k_have_the_form_that_the_conversion_gives() -> None:
    for split, count in (("train", 7473), ("test", 1319)):
        rows = reference_rows(split)
        assert len(rows) == count
        for row in rows:
            body, found, number = row["answer"].rpartition("\nThe answer is ")
            assert found and re.fullmatch(r"-?[\d,]+\.", number) and "<<" not in body and "####" not in body
            official = {"question": row["question"], "answer": f"{body}\n#### {number[:-1]}"}
            assert gsm8k(official) == row


@pytest.mark.parametrize("answer", ["The answer is 72.", "#### 72\nand more", "", None, "72 clips #### 72"])
def test_an_answer_in_another_form_is_a_bad_row(answer: str | None) -> None:
    with pytest.raises(UnusableRow):
        gsm8k({"question": "How many?", "answer": answer})


def test_dolly_magicoder_and_openhermes_take_the_references_columns() -> None:
    row = {"instruction": "Which moth?", "context": "E. brevipennis is …", "response": "Noctuidae", "category": "qa"}
    assert dolly(row) == {"instruction": "Which moth?", "input": "E. brevipennis is …", "output": "Noctuidae"}
    assert dolly({**row, "context": ""})["input"] == ""
    task = {"lang": "python", "seed": "x", "problem": "Write it.", "solution": "```python\n1\n```"}
    assert magicoder(task) == {"instruction": "Write it.", "output": "```python\n1\n```"}
    talk = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Name a dish."), ("gpt", "Pho.")]
    turns = [{"from": who, "value": said, "weight": None} for who, said in talk]
    assert openhermes({"conversations": turns, "source": "x"}) == {
        "instruction": "Name a dish.",
        "input": "",
        "output": "Pho.",
        "history": [["Hi", "Hello"]],
        "system": "Be kind.",
    }
    assert openhermes({"conversations": turns[3:]}) == {"instruction": "Name a dish.", "input": "", "output": "Pho."}
    assert openhermes({"instruction": "Hi", "output": "Hello"})["output"] == "Hello"
    for bad in (turns[:2], turns[2:], [], "x"):
        with pytest.raises(UnusableRow):
            openhermes({"conversations": bad})


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_of_ones_own_in_that_form_is_read_with_convert(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", STORE, {"question": "?", "answer": "none"}, 3)
    config = DataConfig(dataset=file, convert="gsm8k", on_bad_rows="skip")
    [example] = load_examples(config)
    assert example.reference.endswith("whole store.\nThe answer is 3,472.")
    assert example.meta["row"]["answer"] == example.reference
    with pytest.raises(DataError, match=r"mine\.jsonl:2: column 'answer' does not end with a line such as '#### 72'"):
        load_examples(config.model_copy(update={"on_bad_rows": "error"}))
    recipe = load_recipe({"model": "m", "data": {**config.model_dump()}, "select": {"checks": ["number"]}})
    count, failing, skipped = failing_golds(recipe)
    assert (count, failing, len(skipped)) == (1, [], 2)
    with pytest.raises(DataError, match="is generated, and has no rows to convert"):
        load_examples(DataConfig(dataset="reasoning_gym", convert="gsm8k", options={"task": "x", "size": 1}))


def test_dolly_and_magicoder_are_told_from_their_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path / "d.jsonl", {"instruction": "Which?", "context": "It is …", "response": "It", "category": "c"}
    )
    assert [(e.instruction, e.reference) for e in load_examples(file)] == [("Which?\nIt is …", "It")]
    file = write(tmp_path / "m.jsonl", {"problem": "Write it.", "solution": "x = 1", "lang": "python"})
    assert [(e.instruction, e.reference) for e in load_examples(file)] == [("Write it.", "x = 1")]


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RegistryEntry:
    """A registered dataset `sums` whose address does not answer, with a hub source in GSM8K's form."""
    made = RegistryEntry(
        description="Sums",
        rows=1,
        file="sums/rows.json",
        columns={"prompt": "question", "response": "answer"},
        url="http://127.0.0.1:9/rows.json",
        sha256="0" * 64,
        hub=HubSource(
            name="own/sums", subset="main", split="train[:1]", revision="abc", convert="gsm8k", same_rows=False
        ),
    )
    for module in (registry_module, sources_module):
        monkeypatch.setattr(module, "registered", lambda: {"sums": made})
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SDFT_DATA_DIR", raising=False)
    return made


def test_where_the_file_cannot_be_had_the_hub_is_asked_once_and_said_so(
    entry: RegistryEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def load_dataset(*place: Any, **options: Any) -> Any:
        asked.append((*place, options))
        return datasets.Dataset.from_list([STORE])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(dataset="sums")
    assert unfetched(config) and not hub_note(config)
    [example] = load_examples(config)
    assert example.reference.endswith("The answer is 3,472.")
    assert load_examples(config) == [example]
    assert asked == [("own/sums", "main", {"split": "train[:1]", "revision": "abc"})]
    assert unfetched(config) is None
    [note] = hub_note(config)
    assert "own/sums" in note and "not the rows that the reference drew" in note


def test_where_neither_answers_both_reasons_are_named_and_nothing_is_left(
    entry: RegistryEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nothing(*_: Any) -> Any:
        raise DataError("own/sums: the hub dataset cannot be loaded (offline)")

    monkeypatch.setattr(registry_module, "hub_rows", nothing)
    with pytest.raises(DataError) as error:
        fetch("sums", entry)
    for words in (entry.url, "SDFT_DATA_DIR", "The download failed", "The hub: own/sums", "offline"):
        assert words in str(error.value)
    assert not list((tmp_path / "cache").glob("**/*.jsonl"))
    assert hub_module.hub_rows is not nothing


def test_hub_sources_give_what_their_entries_say() -> None:
    for name, known in registered().items():
        if known.hub is None:
            continue
        assert re.fullmatch("[0-9a-f]{40}", known.hub.revision), "what a branch holds may change within a run"
        assert known.hub.same_rows == name.startswith("gsm8k")
        assert known.hub.same_rows or known.hub.split.endswith(f"[:{known.rows}]")
