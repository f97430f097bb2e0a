from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft.data import as_messages, as_row
from sdft.data.config import Format
from sdft.data.formats import (
    MAX_ROW_CHARS,
    Layout,
    Tags,
    UnusableRow,
    choose_layout,
    to_example,
)
from sdft.errors import DataError
from sdft.records import Example

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
optional = st.none() | st.just("") | text
pairs = st.lists(st.lists(text, min_size=2, max_size=2), max_size=3)


def turns(user: str, assistant: str, role: str, content: str) -> st.SearchStrategy[list[dict[str, str]]]:
    def build(system: str | None, texts: list[str]) -> list[dict[str, str]]:
        texts = texts if len(texts) % 2 == 0 else texts[:-1]
        said = [{role: assistant if i % 2 else user, content: t} for i, t in enumerate(texts)]
        return ([{role: "system", content: system}] if system else []) + said

    return st.builds(build, optional, st.lists(text, min_size=2, max_size=7))


ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "alpaca": st.fixed_dictionaries(
        {"instruction": text, "output": text}, optional={"input": optional, "history": pairs, "system": optional}
    ),
    "sharegpt": st.fixed_dictionaries({"conversations": turns("human", "gpt", "from", "value")}),
    "messages": st.fixed_dictionaries(
        {"messages": turns("user", "assistant", "role", "content")}, optional={"source": text}
    ),
    "prompt_completion": st.fixed_dictionaries({"prompt": text, "completion": text})
    | st.builds(
        lambda said: {"prompt": said[:-1], "completion": said[-1:]}, turns("user", "assistant", "role", "content")
    ),
}


def read(row: dict[str, Any], form: Format = "auto", **columns: str) -> Example:
    layout = choose_layout(form, columns, row, "test")
    return to_example(layout, row)[0]


@pytest.mark.parametrize("name", ROWS)
@given(data=st.data(), response=text)
def test_row_to_example_and_back(name: str, data: st.DataObject, response: str) -> None:
    row = data.draw(ROWS[name])
    before = copy.deepcopy(row)
    example = read(row)
    assert as_row(example, example.reference) == before
    changed = as_row(example, response)
    assert row == before, "the source row is left alone"
    again = read(changed)
    assert (again.messages, again.reference) == (example.messages, response)
    assert as_row(again, example.reference) == before
    stored = Example.model_validate_json(example.model_dump_json())
    assert as_row(stored, response) == changed


@pytest.mark.parametrize("name", ROWS)
@given(data=st.data())
def test_messages_say_the_same(name: str, data: st.DataObject) -> None:
    example = read(data.draw(ROWS[name]))
    again = read(as_messages(example, example.reference))
    assert (again.id, again.messages, again.reference) == (example.id, example.messages, example.reference)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    ["instruction", "input", "output", "history", "system", "messages", "conversations", "prompt", "completion", "id"]
)
odd_turns = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value"]),
        st.sampled_from(["user", "assistant", "system", "gpt", "human", "tool", ""]) | json_values,
        max_size=4,
    ),
    max_size=4,
)


@given(
    row=st.dictionaries(names, json_values | odd_turns, max_size=6) | json_values,
    form=st.sampled_from([*ROWS, "columns"]),
)
def test_garbage_is_refused_and_never_crashes(row: Any, form: Format) -> None:
    columns = {"prompt": "instruction", "response": "output"} if form == "columns" else {}
    layout = choose_layout(form, columns, row if isinstance(row, dict) else {}, "test")
    try:
        example, _ = to_example(layout, row)
    except UnusableRow as error:
        assert str(error)
    else:
        assert example.instruction.strip() and example.reference.strip()
        assert Example.model_validate_json(example.model_dump_json()).messages == example.messages


def test_alpaca_joins_instruction_and_input_and_keeps_history() -> None:
    row = {
        "instruction": "Translate. ",
        "input": "chat",
        "output": "cat",
        "history": [["Hi", "Hello"]],
        "system": "You translate.",
    }
    example = read(row)
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "user"]
    assert example.instruction == "Translate. \nchat", "nothing is stripped"
    assert read({**row, "input": ""}).instruction == "Translate. "
    assert example.meta == {"row": row, "reply_column": "output"}


def test_a_column_map_reads_any_flat_row() -> None:
    row = {"key": 7, "question": "1+1?", "answer": "2", "note": None}
    example = read(row, "columns", prompt="question", response="answer", id="key")
    assert (example.id, example.instruction, example.reference) == ("7", "1+1?", "2")
    assert as_row(example, "two") == {**row, "answer": "two"}


def test_own_tags_are_followed() -> None:
    tags = Tags.from_info(
        {"role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A", "system_tag": "S"}
    )
    layout: Layout = type(choose_layout("messages", {}, {}, "t"))("talk", None, tags)  # type: ignore[call-arg]
    row = {"talk": [{"who": "S", "said": "Be kind."}, {"who": "Q", "said": "Hi"}, {"who": "A", "said": "Hello"}]}
    example, _ = to_example(layout, row)
    assert (example.system, example.instruction, example.reference) == ("Be kind.", "Hi", "Hello")
    assert as_row(example, "Hey")["talk"][-1] == {"who": "A", "said": "Hey"}
    with pytest.raises(UnusableRow, match="speakers are Q or A or S"):
        to_example(layout, {"talk": [{"who": "user", "said": "Hi"}, {"who": "A", "said": "Hello"}]})


def test_ids_are_the_rows_own_or_a_hash_of_the_content() -> None:
    row = {"instruction": "Hi", "output": "Hello"}
    plain = read(row)
    assert len(plain.id) == 16
    assert read({**row, "note": 1}).id == plain.id, "other columns do not count"
    assert read({**row, "output": "Hey"}).id != plain.id
    assert read({**row, "id": "a"}).id == "a"
    assert read({**row, "task_id": 3}).id == "3"
    assert read({**row, "id": ""}).id == plain.id
    with pytest.raises(UnusableRow, match="id in column 'id' is a number"):
        read({**row, "id": 1.5})


def test_a_given_system_text_goes_to_rows_without_one_and_keeps_their_ids() -> None:
    row = {"instruction": "Hi", "output": "Hello"}
    layout = choose_layout("auto", {}, row, "test")
    bare, given_one = to_example(layout, row)[0], to_example(layout, row, "Be kind.")[0]
    assert (bare.system, given_one.system, bare.id) == (None, "Be kind.", given_one.id)
    assert to_example(layout, {**row, "system": "Own."}, "Be kind.")[0].system == "Own."


U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "Hi", "output": ""}, "the reply is empty"),
        ({"instruction": " ", "output": "x"}, "the prompt is empty"),
        ({"instruction": "Hi", "output": True}, "column 'output' is a truth value, not text"),
        ({"instruction": "Hi", "output": float("nan")}, "column 'output' is a number, not text"),
        ({"instruction": None, "output": "x"}, "column 'instruction' is null, not text"),
        ({"instruction": "Hi", "output": "x", "input": ["a"]}, "column 'input' is a list, not text"),
        ({"instruction": "Hi", "output": "x", "history": [["a"]]}, "item 1 of 'history' is not [prompt, reply]"),
        ({"instruction": "Hi", "output": "x", "history": "a"}, "column 'history' is text, not a list"),
        ({"instruction": "Hi", "output": "\ud800"}, "not valid Unicode"),
        ({"messages": [U]}, "the last turn is not a reply"),
        ({"messages": []}, "the last turn is not a reply"),
        ({"messages": [A]}, "no user turn"),
        ({"messages": [S, A]}, "no user turn"),
        ({"messages": [A, U, A]}, "'assistant' where 'user' belongs"),
        ({"messages": [U, U, A]}, "'user' where 'assistant' belongs"),
        ({"messages": [U, S, A]}, "'system' where 'assistant' belongs"),
        ({"messages": [U, {"role": "tool", "content": "x"}, A]}, "turn 2 of 'messages' is by 'tool'"),
        ({"messages": [U, {"role": "assistant"}]}, "turn 2 of 'messages' has no 'content or value'"),
        ({"messages": [U, {"role": "assistant", "content": None}]}, "'content' is null, not text"),
        ({"messages": [U, "x"]}, "turn 2 of 'messages' is text, not an object"),
        ({"messages": "x"}, "not a list of turns"),
        ({"prompt": [U], "completion": [U]}, "the last turn is not a reply"),
        ({"prompt": [], "completion": "x"}, "empty list"),
    ],
)
def test_bad_rows_say_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(UnusableRow) as error:
        read(row)
    assert why in str(error.value)


def test_rows_that_are_too_long_or_too_deep_are_refused() -> None:
    with pytest.raises(UnusableRow, match="over-long"):
        read({"instruction": "Hi", "output": "x" * MAX_ROW_CHARS})
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UnusableRow, match="nested"):
        read({"instruction": "Hi", "output": "x", "extra": deep})


def test_auto_says_what_to_write_where_it_cannot_tell() -> None:
    with pytest.raises(DataError) as error:
        choose_layout("auto", {}, {"question": "a", "answer": "b"}, "my.json")
    assert "my.json" in str(error.value) and "question, answer" in str(error.value)
    assert "columns: {prompt: question, response: answer}" in str(error.value)


def test_a_column_map_with_a_misspelt_or_missing_part_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'response'"):
        choose_layout("columns", {"prompt": "q", "respons": "a"}, {}, "my.json")
    with pytest.raises(DataError, match="no column for 'response'"):
        choose_layout("columns", {"prompt": "q"}, {"q": 1}, "my.json")


def test_an_example_made_by_hand_becomes_messages() -> None:
    example = read({"instruction": "Hi", "output": "Hello"}).model_copy(update={"meta": {}})
    assert as_row(example, "Hey") == as_messages(example, "Hey")
    assert json.dumps(as_messages(example, "Hey"))
