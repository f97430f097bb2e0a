"""The engine `openai` against a real server on loopback that misbehaves as servers do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

import sdft
from helpers_models import save_tiny_model
from helpers_pipeline import scripted_recipe
from helpers_server import MODEL, Fault, Served, prompt_of, said, serving
from sdft.engines import OpenAISettings, Request, Sampling
from sdft.engines import _servers as servers
from sdft.engines.openai import MOST_FAILURES, PROBE
from sdft.errors import EngineError, RecipeError, ScoringError
from sdft.models import ModelConfig
from sdft.pipeline import check_all
from sdft.prompts import PromptConfig
from sdft.records import Choice, Completion, Message, Prediction, ReplyNll, Rewrite
from sdft.rendering import open_prompter
from sdft.rundir import read_json, read_jsonl

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(servers, "LAST_PAUSE", 0.1)


def asked(count: int, **more: Any) -> list[Request]:
    return [
        Request(str(n), "", n, messages=(Message(role="user", content=f"question {n}"),), **more) for n in range(count)
    ]


def generate(
    server: Served | str | tuple[str, ...], requests: list[Request], sampling: Sampling | None = None, **settings: Any
) -> dict[str, Completion]:
    url = server.url if isinstance(server, Served) else server
    engine = OpenAISettings(base_url=url, **settings).open(ModelConfig(name=MODEL))
    with closing(engine):
        found = list(engine.generate(requests, sampling or Sampling(max_new_tokens=8)))
    assert len({completion.id for completion in found}) == len(found)
    return {completion.id: completion for completion in found}


def all_well(found: dict[str, Completion], count: int) -> bool:
    return {name: item.text for name, item in found.items()} == {str(n): f"reply to question {n}" for n in range(count)}


def test_each_request_gets_its_own_reply_with_the_servers_counts(server: Served) -> None:
    found = generate(server, asked(50))
    assert all_well(found, 50)
    assert (found["7"].finish, found["7"].prompt_tokens, found["7"].tokens) == ("stop", 2, 4)
    server.finish = "length"
    assert generate(server, asked(1))["0"].finish == "length"


def test_what_is_sent(server: Served) -> None:
    text = Request("t", "<s>Say", 2**40 + 5, stop=("END",))
    generate(server, [text, *asked(1)], Sampling(temperature=0.5, top_p=0.7, top_k=50, max_new_tokens=8))
    by_path = dict(zip(server.paths, server.bodies, strict=True))
    assert by_path["/v1/completions"] == {
        "model": MODEL, "prompt": "<s>Say", "temperature": 0.5, "top_p": 0.7, "top_k": 50, "max_tokens": 8, "seed": 5,
        "stop": ["END"],
    }  # fmt: skip
    assert by_path["/v1/chat/completions"]["messages"] == [{"role": "user", "content": "question 0"}]
    generate(server, asked(1), max_tokens_field="max_completion_tokens", extra_body={"think": False})
    greedy = {"model": MODEL, "messages": by_path["/v1/chat/completions"]["messages"], "temperature": 0.0}
    assert server.bodies[-1] == {**greedy, "max_completion_tokens": 8, "think": False}
    generate(server, asked(1), Sampling(temperature=1, top_k=3), leave_out=["seed", "top_k"], models={"seed": "other"})
    assert not {"seed", "top_k"} & set(server.bodies[-1])
    assert server.bodies[-1]["model"] == "other"


def test_requests_are_read_as_there_is_room_and_no_more_are_in_flight(server: Served) -> None:
    server.seconds = 0.02
    read = 0

    def requests() -> Iterator[Request]:
        nonlocal read
        for request in asked(30):
            read += 1
            yield request

    engine = OpenAISettings(base_url=server.url, max_concurrency=4).open(ModelConfig(name=MODEL))
    with closing(engine):
        for done, _ in enumerate(engine.generate(requests(), Sampling()), 1):
            assert read <= done + 4
    assert server.most == 4


def test_a_server_with_too_much_to_do_is_given_less_and_no_request_is_lost(server: Served) -> None:
    server.seconds, server.at_once = 0.005, 3
    assert all_well(generate(server, asked(80), max_concurrency=16, max_retries=0), 80)
    refused = len(server.bodies) - 80
    assert refused < 60  # without slowing down each answer costs several refusals


def test_retry_after_is_obeyed(server: Served) -> None:
    server.plan = lambda n, body: said(429, "slow down", Retry_After="0.3") if n == 0 else None
    assert all_well(generate(server, asked(3), max_concurrency=1), 3)
    assert 0.3 <= server.times[1] - server.times[0] < 1.5


def test_retry_after_forms() -> None:
    later = {"date": "Wed, 21 Oct 2015 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}
    assert servers.retry_after(later) == 30, "by the server's clock, whatever this machine's says"
    assert servers.retry_after({"retry-after": "2"}) == 2
    assert servers.retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert servers.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert servers.retry_after({"retry-after": "soon"}) is None
    assert servers.retry_after({"retry-after": "nan"}) is None
    assert servers.retry_after({}) is None


FAULTS = {
    "500": said(500, "oops"),
    "500 of another form": Fault(500, b'{"detail": "out of memory"}'),
    "502 without JSON": Fault(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}),
    "503": said(503, "loading the model"),
    "closed": Fault(),
    "reset": Fault(reset=True),
    "half a response": Fault(200, json.dumps({"choices": [{"text": "x"}] * 9}).encode(), cut_after=20),
    "broken JSON": Fault(200, b'{"choices": [{"te'),
    "not an answer": Fault(200, b'{"choices": []}'),
    "two choices": Fault(200, json.dumps({"choices": [{"message": {"content": "x"}}] * 2}).encode()),
    "late": Fault(200, json.dumps({"choices": [{"message": {"content": "too late"}}]}).encode(), hang=0.6),
    "a web page": Fault(200, b"<html>welcome</html>", {"Content-Type": "text/html"}),
    "hanging": Fault(200, b"{}", hang=1.0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_passing_fault_is_got_over(server: Served, fault: Fault) -> None:
    server.plan = lambda n, body: fault if n % 4 == 1 else None
    assert all_well(generate(server, asked(10), timeout=0.3, max_concurrency=4), 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "500": "500 - oops",
        "500 of another form": "out of memory",
        "502 without JSON": "bad gateway",
        "closed": "connection broke",
        "reset": "connection broke (ReadError)",
        "half a response": "connection broke",
        "broken JSON": "not one of an OpenAI-compatible server",
        "not an answer": "choices",
        "two choices": "at most 1 item",
        "hanging": "no answer within 0.2 s",
    }.items(),
)
def test_a_request_that_always_fails_is_a_row_with_a_reason_and_the_others_go_on(
    server: Served, name: str, reason: str
) -> None:
    server.plan = lambda n, body: FAULTS[name] if prompt_of(body) == "question 1" else None
    found = generate(server, asked(4), timeout=0.2 if name == "hanging" else 10, max_retries=2)
    failed = found.pop("1")
    assert failed.finish == "error" and failed.text == "" and reason in (failed.error or "")
    assert "(3 times)" in (failed.error or "")
    assert {item.finish for item in found.values()} == {"stop"}
    assert sum(prompt_of(body) == "question 1" for body in server.bodies) == 3


def test_an_answer_to_another_request_is_not_taken(server: Served) -> None:
    server.answers = lambda n: n - 1 if n % 4 == 3 else n
    assert all_well(generate(server, asked(20), max_concurrency=4), 20)
    assert len(server.bodies) > 20 and len(set(server.names)) == len(server.bodies)
    server.answers = lambda n: 0
    with pytest.raises(EngineError, match="answer is that to another request"):
        generate(server, asked(2), max_retries=1)


def test_a_prompt_that_the_server_refuses_is_not_sent_again(server: Served) -> None:
    too_long = said(400, "maximum context length is 8 tokens")
    server.plan = lambda n, body: too_long if prompt_of(body) == "question 2" else None
    found = generate(server, asked(5))
    assert found["2"].finish == "error" and "maximum context length" in (found["2"].error or "")
    assert len(server.bodies) == 5


def test_a_field_that_the_server_does_not_take_is_named(server: Served) -> None:
    server.plan = lambda n, body: (
        said(400, "Unrecognized request argument supplied: top_k") if "top_k" in body else None
    )
    with pytest.raises(EngineError, match=r"leave_out: \[top_k\]"):
        generate(server, asked(3), Sampling(temperature=1, top_k=5))
    unexpected = Fault(422, b'{"detail": "Unexpected fields in the request: {\'seed\'}"}')
    server.plan = lambda n, body: unexpected if "seed" in body else None
    with pytest.raises(EngineError, match=r"leave_out: \[seed\]"):
        generate(server, asked(3), Sampling(temperature=1))


def test_a_wrong_model_name_stops_at_once_and_names_the_servers_own(server: Served) -> None:
    server.plan = lambda n, body: said(404, "The model does not exist.")
    with pytest.raises(EngineError, match=r"no model 'servd'; did you mean 'served'\?"):
        generate(server, asked(3), max_concurrency=1, models={"seed": "servd"})
    assert len(server.bodies) == 1


def test_a_wrong_key_stops_at_once_and_is_shown_nowhere(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.plan = lambda n, body: said(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(EngineError, match="MY_KEY") as error:
        generate(server, asked(3), max_concurrency=1, api_key_env="MY_KEY")
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in str(error.value) and error.value.__cause__ is None
    server.plan = lambda n, body: said(400, f"bad {KEY}") if prompt_of(body) != PROBE else None
    assert KEY not in (generate(server, asked(1), api_key_env="MY_KEY")["0"].error or "")
    server.plan = lambda n, body: None
    server.reply = lambda body: f"your key is {KEY}"
    assert generate(server, asked(1), api_key_env="MY_KEY")["0"].text == "your key is ***"


def test_no_key_is_sent_unless_it_is_asked_for(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    generate(server, asked(1))
    assert server.keys == ["Bearer none"]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EngineError, match=r"OPENAI_API_KEY .* is not set"):
        generate(server, asked(1), api_key_env="OPENAI_API_KEY")


@pytest.mark.parametrize("key", ["sk-right key", "“sk-quoted”", "sk-a\nsk-b"])
def test_what_is_no_key_is_told_before_anything_is_sent(
    server: Served, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(EngineError, match=r"MY_KEY .* holds what is no key") as error:
        generate(server, asked(1), api_key_env="MY_KEY")
    assert "sk-" not in str(error.value) and not server.bodies
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")  # as `export MY_KEY="$(cat file)"` with a carriage return would leave it
    generate(server, asked(1), api_key_env="MY_KEY")
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("code", "text"), [(402, "Insufficient Balance"), (400, "Your credit balance is too low")])
def test_an_account_that_runs_dry_stops_after_good_answers_too(server: Served, code: int, text: str) -> None:
    server.plan = lambda n, body: said(code, text) if n >= 5 else None
    with pytest.raises(EngineError, match="account is empty"):
        generate(server, asked(30), max_concurrency=2)


def test_a_refusal_that_quotes_the_prompt_is_not_one_of_a_field(server: Served) -> None:
    server.plan = lambda n, body: said(400, "Flagged: 'how do I stop seeding weeds'") if n == 2 else None
    found = generate(server, asked(5), Sampling(temperature=1))
    assert sorted(row.finish for row in found.values()) == ["error", *["stop"] * 4]


def test_an_error_in_a_good_answers_place_is_tried_again_and_told(server: Served) -> None:
    body = json.dumps({"error": {"message": "upstream is rate limited", "code": 429}}).encode()
    server.plan = lambda n, _: Fault(200, body) if n == 0 else None
    assert {row.finish for row in generate(server, asked(3)).values()} == {"stop"}
    server.plan = lambda n, _: Fault(200, b'{"error": {"message": "the model fell over"}}')
    with pytest.raises(EngineError, match="the model fell over"):
        generate(server, asked(3), max_retries=0)


@pytest.mark.parametrize("choice", ["{}", '{"message": null}'])
def test_a_choice_with_nothing_in_it_is_no_reply(server: Served, choice: str) -> None:
    server.plan = lambda n, _: Fault(200, f'{{"choices": [{choice}]}}'.encode()) if n == 0 else None
    found = generate(server, asked(2))
    assert all(row.finish == "stop" and row.text for row in found.values()) and len(server.bodies) == 3


def test_an_empty_account_stops(server: Served) -> None:
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()
    server.plan = lambda n, _: Fault(429, body)
    with pytest.raises(EngineError, match="account is empty"):
        generate(server, asked(3))


def test_a_server_that_fails_everything_stops_the_run_before_a_row_is_written(server: Served) -> None:
    server.plan = lambda n, body: said(500, "oops")
    engine = OpenAISettings(base_url=server.url, max_retries=0).open(ModelConfig(name=MODEL))
    seen = []
    with closing(engine), pytest.raises(EngineError, match=f"^{MOST_FAILURES} requests failed .*oops"):
        for completion in engine.generate(asked(100), Sampling()):
            seen.append(completion)
    assert not seen


@pytest.mark.parametrize("count", [1, 5, 100])
def test_a_server_that_refuses_everything_stops_the_run_before_a_row_is_written(server: Served, count: int) -> None:
    server.plan = lambda n, body: said(400, "this server is for another model")
    engine = OpenAISettings(base_url=server.url).open(ModelConfig(name=MODEL))
    seen = []
    with closing(engine), pytest.raises(EngineError, match=rf"^{min(count, 20)} requests failed .*another model"):
        for completion in engine.generate(asked(count), Sampling()):
            seen.append(completion)
    assert not seen


def test_a_server_that_begins_to_refuse_everything_stops_the_run_after_good_answers_too(server: Served) -> None:
    server.plan = lambda n, body: said(400, "not for you") if n >= 30 else None
    engine = OpenAISettings(base_url=server.url, max_concurrency=4).open(ModelConfig(name=MODEL))
    seen = []
    with closing(engine), pytest.raises(EngineError, match=rf"^{MOST_FAILURES} requests failed .*not for you"):
        for completion in engine.generate(asked(200), Sampling()):
            seen.append(completion.finish)
    assert 30 <= len(seen) < 34 and seen.count("stop") == 30, "the last good answers come among the first refusals"


@pytest.mark.parametrize("count", [1, 3, 45])
def test_rows_that_are_refused_for_their_own_sake_are_rows_though_none_is_answered(server: Served, count: int) -> None:
    too_long = said(400, "maximum context length is 8 tokens")
    server.plan = lambda n, body: None if prompt_of(body) == PROBE else too_long
    found = generate(server, asked(count, stop=("END",)), Sampling(temperature=1, top_k=3))
    assert len(found) == count and {row.finish for row in found.values()} == {"error"}
    assert all("maximum context length" in (row.error or "") for row in found.values())
    probes = [body for body in server.bodies if prompt_of(body) == PROBE]
    assert len(probes) == max(1, count // MOST_FAILURES)
    own = {"messages": None, "seed": None}
    assert probes[0] | own == server.bodies[0] | own, "else what is refused in all requests would not show"


def unused_url() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def test_no_server_at_all_stops_when_patience_ends() -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"cannot be reached.*same command again"):
        generate(unused_url(), asked(2), patience=0.2)
    assert time.monotonic() - started < 5


def test_a_server_that_asks_for_hours_is_not_waited_for(server: Served) -> None:
    server.plan = lambda n, body: said(429, "daily limit", Retry_After="7200")
    with pytest.raises(EngineError, match="left alone for"):
        generate(server, asked(2))


def test_a_longer_pause_than_patience_is_waited_out_where_the_server_asks_for_it(server: Served) -> None:
    server.plan = lambda n, body: said(429, "wait", Retry_After="0.3") if n == 0 else None
    assert all_well(generate(server, asked(2), max_concurrency=1, patience=0.1), 2)
    server.plan = lambda n, body: said(429, "wait", Retry_After="0.1")
    with pytest.raises(EngineError, match="no good answer"):
        generate(server, asked(2), max_concurrency=1, patience=0.3)


def test_requests_are_spread_over_servers_and_a_dead_one_is_left_out(server: Served) -> None:
    server.seconds = 0.01
    with serving() as other:
        other.seconds = 0.01
        assert all_well(generate((server.url, other.url), asked(40), max_concurrency=4), 40)
        assert min(len(server.bodies), len(other.bodies)) >= 10
    dead = other.url  # shut down by now
    before = len(server.bodies)
    assert all_well(generate((dead, server.url), asked(30), max_concurrency=4), 30)
    assert len(server.bodies) - before == 30


def test_a_server_that_comes_back_is_asked_again(server: Served) -> None:
    server.seconds = 0.02
    with serving() as other:
        down = threading.Event()
        down.set()
        other.plan = lambda n, body: said(503, "starting") if down.is_set() else None
        engine = OpenAISettings(base_url=(server.url, other.url), max_concurrency=2).open(ModelConfig(name=MODEL))
        with closing(engine):
            for done, _ in enumerate(engine.generate(asked(60), Sampling()), 1):
                if done == 20:
                    refused = len(other.bodies)
                    down.clear()
        assert refused < 15  # it was tried now and then, not with every request
        assert len(other.bodies) - refused > 5


def test_one_of_several_that_has_no_such_model_is_left_out_and_named(server: Served) -> None:
    def missing(n: int, body: dict[str, Any]) -> Fault:
        return said(404, "The model does not exist.")

    server.seconds = 0.01
    with serving() as late, serving() as wrong:
        late.plan = lambda n, body: missing(n, body) if n < 3 else None
        wrong.plan, wrong.models = missing, ["another"]
        settings = OpenAISettings(base_url=(wrong.url, late.url, server.url), max_concurrency=2)
        with closing(settings.open(ModelConfig(name=MODEL))) as engine:
            found = {row.id: row for row in engine.generate(asked(80), Sampling())}
            notes = engine.notes()
        assert all_well(found, 80)
        assert len(late.bodies) > 5, "it was asked again until it had the model"
        assert len(wrong.bodies) < 20, "it was tried now and then, not with every request"
        [note] = notes
        assert note.startswith(f"{wrong.url} was left out at the end: {wrong.url}: 404 - ") and "another" in note
        server.plan = late.plan = missing
        with pytest.raises(EngineError) as error:
            generate((wrong.url, late.url, server.url), asked(3))
    assert all(url in str(error.value) for url in (wrong.url, late.url, server.url))


def test_one_of_several_that_refuses_the_key_stops_the_run_and_is_named(server: Served) -> None:
    with serving() as other:
        other.plan = lambda n, body: said(403, "no entry")
        with pytest.raises(EngineError, match=rf"^{other.url}: 403 .*no entry; the server refuses access"):
            generate((server.url, other.url), asked(30), max_concurrency=2)


def test_closing_early_leaves_nothing_running(server: Served) -> None:
    server.seconds = 0.2
    engine = OpenAISettings(base_url=server.url, max_concurrency=8).open(ModelConfig(name=MODEL))
    replies = engine.generate(asked(50), Sampling())
    next(replies)
    replies.close()
    sent = len(server.bodies)
    engine.close()
    engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sdft-openai"]
    time.sleep(0.3)
    assert len(server.bodies) == sent <= 16
    assert server.active == 0


def test_an_error_in_the_callers_requests_comes_through(server: Served) -> None:
    def requests() -> Iterator[Request]:
        yield from asked(2)
        raise ValueError("no such row")

    engine = OpenAISettings(base_url=server.url).open(ModelConfig(name=MODEL))
    with closing(engine), pytest.raises(ValueError, match="no such row"):
        list(engine.generate(requests(), Sampling()))


def test_given_replies_are_scored_as_by_the_model_itself(server: Served, tmp_path: Path) -> None:
    import torch

    from sdft.engines import Continuation, TransformersSettings, open_engine

    config = ModelConfig(name=str(save_tiny_model(tmp_path / "tiny")), dtype="float32", device="cpu")
    items = [Continuation(str(n), f"question {n} is", " the answer" * (n % 3)) for n in range(8)]
    with closing(TransformersSettings().open(config)) as own:
        wanted = list(own.logprobs(items))

        def score(ids: list[int]) -> list[float]:
            scores = own.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            return [row[token].item() for row, token in zip(scores, ids[1:], strict=True)]

        served = OpenAISettings(base_url=server.url, max_concurrency=2, models={"seed": MODEL, "sft": "my-sft"})
        with closing(open_engine(served, "sft", config)) as engine, pytest.raises(EngineError, match="scores no given"):
            list(engine.logprobs(items))
        server.plan = lambda n, body: said(404, "Not Found") if "prompt" in body else None
        with closing(open_engine(served, "sft", config)) as engine:
            with pytest.raises(ScoringError, match=r"at /chat/completions alone; the log-prob.* engine trans"):
                list(engine.logprobs(items))
            with pytest.raises(EngineError, match=r"alone; prompts as text need .* prompt\.style: chat"):
                list(engine.generate([Request("0", "Q:")], Sampling()))
            assert next(engine.generate(asked(1), Sampling())).text == "reply to question 0"
        server.plan = lambda n, body: said(404, "Not Found")
        with closing(open_engine(served, "sft", config)) as engine, pytest.raises(EngineError, match="no model 'my-s"):
            list(engine.logprobs(items))
        server.paths.clear()
        server.score = score
        for server.scores_by in ("prompt_logprobs", "echo"):
            other = "echo" if server.scores_by == "prompt_logprobs" else "prompt_logprobs"
            server.plan = lambda n, body, other=other: said(400, f"unknown field {other}") if other in body else None
            with closing(open_engine(served, "sft", config)) as engine:
                found = list(engine.logprobs(items))
            assert [(f.id, f.tokens) for f in found] == [(w.id, w.tokens) for w in wanted]
            assert all(f.logprobs == pytest.approx(w.logprobs, abs=1e-4) for f, w in zip(found, wanted, strict=True))
    assert {body["model"] for body in server.bodies} == {"my-sft"} and set(server.paths) == {"/v1/completions"}
    with pytest.raises(EngineError, match="tuned model 'sdft' is not given"):
        open_engine(served, "sdft", config)


def test_what_a_server_says_of_a_reply_is_kept(server: Served) -> None:
    def answer(**choice: Any) -> Fault:
        return Fault(200, json.dumps({"choices": [choice]}).encode())

    plans = {
        "question 0": answer(message={"content": "bad"}, finish_reason="content_filter"),
        "question 1": answer(message={"content": None, "tool_calls": [{}]}, finish_reason="tool_calls"),
        "question 2": answer(message={"content": None, "refusal": "No."}, finish_reason="stop"),
        "question 3": answer(message={"content": None}, finish_reason="length"),
    }
    server.plan = lambda n, body: plans[prompt_of(body)]
    found = generate(server, asked(4))
    assert [found[str(n)].finish for n in range(4)] == ["error", "error", "stop", "length"]
    assert "content_filter" in (found["0"].error or "") and "tool call" in (found["1"].error or "")
    assert (found["2"].text, found["3"].text, found["3"].tokens) == ("No.", "", 0)


def test_settings_that_cannot_be_are_refused_without_showing_a_key() -> None:
    base = {"model": "none", "data": {"dataset": "x.jsonl"}}
    for wrong, why in (
        ({"api_key_env": KEY}, "name of an environment variable"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "no user, password or query"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "no user, password or query"),
        ({"base_url": []}, "at least one"),
        ({"base_url": "localhost:8000"}, "http://localhost:8000/v1"),
        ({"max_concurency": 3}, "did you mean 'max_concurrency'"),
    ):
        with pytest.raises(RecipeError, match=why) as error:
            sdft.load_recipe({**base, "distill": {"engine": {"name": "openai", **wrong}}})
        assert KEY not in str(error.value)


def test_costs() -> None:
    assert OpenAISettings().cost(10, 10) is None
    priced = OpenAISettings(prompt_price=2.0, completion_price=10.0)
    assert priced.cost(1_000_000, 500_000) == 7.0
    assert priced.bill(1_000_000, 500_000) == "1,000,000 prompt and 500,000 reply tokens, cost 7.00"
    assert OpenAISettings().bill(1, 2) == "1 prompt and 2 reply tokens"


# In a recipe


def test_no_rewrite_is_paid_for_where_the_likelihoods_cannot_be_measured(
    tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = recipe(tmp_path, server, methods=[], evaluate={}, model=str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="nowhere"):
        check_all(tree)
    with pytest.raises(RecipeError, match="nowhere"):
        sdft.run(tree)
    monkeypatch.delenv("NOT_SET", raising=False)
    tree |= {"model": "org/model", "evaluate": {"engine": {**tree["distill"]["engine"], "api_key_env": "NOT_SET"}}}
    with pytest.raises(RecipeError, match=r"evaluate\.engine: the environment variable NOT_SET"):
        sdft.run(tree)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecipeError, match="org/model"):
        sdft.run(tree | {"evaluate": {}})
    assert not server.bodies


def recipe(tmp_path: Path, server: Served, **changes: Any) -> dict[str, Any]:
    engine = {"name": "openai", "base_url": server.url, "models": {"seed": MODEL}}
    return (
        scripted_recipe(
            tmp_path,
            model="org/model",
            prompt={"style": "chat"},
            distill={"engine": engine, "max_new_tokens": 16},
            evaluate={"engine": engine, "benchmarks": [{"name": "drift", "limit": 5}]},
        )
        | changes
    )


def test_a_recipe_runs_on_a_server_without_model_or_tokenizer(tmp_path: Path, server: Served) -> None:
    server.reply = lambda body: f"It is {sum(int(word) for word in prompt_of(body).split() if word.isdigit())}."
    tree = recipe(tmp_path, server)
    tree["distill"]["engine"] = {**tree["distill"]["engine"], "prompt_price": 1.0, "completion_price": 2.0}
    folder = sdft.run(tree).path
    rewrites = list(read_jsonl(folder / "distill/rewrites.jsonl", Rewrite))
    assert len(rewrites) == 12 and {item.finish for item in rewrites} == {"stop"}
    assert server.paths == ["/v1/chat/completions"] * 17
    assert {body["model"] for body in server.bodies} == {MODEL}
    spent = sum(item.prompt_tokens for item in rewrites), sum(item.tokens for item in rewrites)
    [note] = [note for note in read_json(folder / "manifest.json")["notes"] if "cost" in note]
    assert f"{spent[0]:,} prompt and {spent[1]:,} reply tokens" in note
    predictions = list(read_jsonl(folder / "eval/seed/drift/predictions.jsonl", Prediction))
    assert len(predictions) == 5 and all(item.predict for item in predictions)


def test_requests_beyond_the_needed_ones_are_counted_and_shown(tmp_path: Path, server: Served) -> None:
    tree = recipe(tmp_path, server)
    folder = sdft.run(tree).path
    assert (folder / "distill/requests.txt").read_text() == "s" * 12
    assert not [note for note in read_json(folder / "manifest.json")["notes"] if "requests" in note]
    server.plan = lambda n, body: said(500, "oops") if n % 7 == 0 else None
    server.bodies.clear()
    server.names.clear()
    folder = sdft.run({**tree, "name": "faulty"}).path
    notes = [note for note in read_json(folder / "manifest.json")["notes"] if "requests" in note]
    assert [note.partition(": ")[0] for note in notes] == ["distill", "seed on drift"]
    sent = [int(note.partition(": ")[2].split()[0]) for note in notes]
    assert sum(sent) == len(server.bodies) > 17
    assert notes[0].startswith(f"distill: {sent[0]} requests for 12 rows: {sent[0] - 12} sent again after a fault")
    for page in ("report.md", "report.html"):
        assert all(note.partition(": ")[2] in (folder / "report" / page).read_text() for note in notes)


def test_an_empty_reply_is_a_row_and_the_original_stays(tmp_path: Path, server: Served) -> None:
    server.reply = lambda body: "" if prompt_of(body).startswith("3 ") or "3 plus" in prompt_of(body) else "It is so."
    folder = sdft.run(recipe(tmp_path, server), only="distill").path
    assert {row.finish for row in read_jsonl(folder / "distill/rewrites.jsonl", Rewrite)} == {"stop"}
    sdft.run(folder, only="select")
    chosen = list(read_jsonl(folder / "select/choices.jsonl", Choice))
    assert len(chosen) == 12
    [empty] = [choice for choice in chosen if choice.verdict.reason == "empty"]
    assert (empty.source, empty.response) == ("original", "7")


def test_where_every_row_is_refused_for_its_own_sake_the_originals_stay(tmp_path: Path, server: Served) -> None:
    server.plan = lambda n, body: None if prompt_of(body) == PROBE else said(400, "the prompt is too long")
    folder = sdft.run(recipe(tmp_path, server), only="distill").path
    rows = list(read_jsonl(folder / "distill/rewrites.jsonl", Rewrite))
    assert len(rows) == 12 and all("too long" in (row.error or "") for row in rows)
    sdft.run(folder, only="select")
    assert {choice.source for choice in read_jsonl(folder / "select/choices.jsonl", Choice)} == {"original"}
    notes = read_json(folder / "manifest.json")["notes"]
    assert any(note.endswith("lost in flight when the run was interrupted, 1 to see whether the server answers at all")
               for note in notes)  # fmt: skip
    assert any(note.startswith("select: only 0 of 12 rows have a rewrite") for note in notes)


def test_a_server_that_dies_while_likelihoods_are_measured_stops_the_run_and_each_text_is_scored(
    tmp_path: Path, server: Served
) -> None:
    tree = recipe(tmp_path, server, model=str(save_tiny_model(tmp_path / "tiny")))
    for section in ("distill", "evaluate"):
        tree[section]["engine"] = {**tree[section]["engine"], "max_concurrency": 2, "patience": 0.2}
    tree["analyze"] = {"similarity": False, "weights": False}
    server.score = lambda ids: [-0.5] * (len(ids) - 1)

    def dies(n: int, body: dict[str, Any]) -> Fault | None:
        if n < 25:  # 12 rewrites, 5 replies
            return None
        server.socket.close()
        return Fault()

    server.plan = dies
    with pytest.raises(EngineError, match=r"cannot be reached.*same command again"):
        sdft.run(tree)
    path = tmp_path / "runs/run/analyze/nll.jsonl"
    kept = {row.text for row in read_jsonl(path, ReplyNll)}
    assert 4 <= len(kept) <= 8
    with serving(server.server_address[1]) as again:
        again.score = server.score
        assert sdft.run(tree).done == ("analyze", "report")
    texts = [row.text for row in read_jsonl(path, ReplyNll) if row.variant == "original"]
    assert len(set(texts)) == len(texts) == 12 and kept < set(texts)


def test_an_interrupted_run_goes_on_at_another_address_without_asking_twice(tmp_path: Path, server: Served) -> None:
    server.plan = lambda n, body: said(401, "who are you?") if n >= 6 else None
    tree = recipe(tmp_path, server)
    tree["distill"]["engine"] = {**tree["distill"]["engine"], "max_concurrency": 1}
    with pytest.raises(EngineError, match="refuses access"):
        sdft.run(tree)
    with serving() as other:
        engine = {**tree["distill"]["engine"], "base_url": other.url, "max_concurrency": 2}
        result = sdft.run({**tree, "distill": {**tree["distill"], "engine": engine}}, only="distill")
        assert len(other.bodies) == 6
    assert len(list(read_jsonl(result.path / "distill/rewrites.jsonl", Rewrite))) == 12


def test_the_key_is_in_no_file_of_a_run(
    tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.plan = lambda n, body: said(400, f"key {KEY} may not ask this") if n % 5 == 2 else None
    server.reply = lambda body: f"It is {KEY}."
    tree = recipe(tmp_path, server)
    for section in ("distill", "evaluate"):
        tree[section]["engine"] = {**tree[section]["engine"], "api_key_env": "MY_KEY"}
    folder = sdft.run(tree).path
    assert set(server.keys) == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert any(b"may not ask this" in text for text in written)
    assert not any(KEY.encode() in text for text in written)
    assert KEY not in "".join(capsys.readouterr())


def test_verbatim_prompts_go_as_text_with_the_models_own_tokens(tmp_path: Path, server: Served) -> None:
    model = ModelConfig(name=str(save_tiny_model(tmp_path / "tiny")))
    prompter = open_prompter(PromptConfig(style="verbatim", train="alpaca"), OpenAISettings(), model)
    example = sdft.Example(id="1", messages=(Message(role="user", content="Name a dish."),), reference="Pho.")
    prompt = prompter.infer(example, None, Sampling(max_new_tokens=8))
    assert prompt is not None and prompt.messages is None
    assert prompt.text.startswith("<|im_start|>Below is")  # its tokenizer adds no BOS, so a server would not
    generate(server, [Request("1", prompt.text, stop=prompt.stop)])
    assert server.paths == ["/v1/completions"] and server.bodies[0]["prompt"] == prompt.text
    assert prompter.context == 512


def test_a_bos_that_the_server_puts_is_taken_off(tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    prompter = open_prompter(
        PromptConfig(style="verbatim", train="alpaca"), OpenAISettings(), ModelConfig(name=str(folder))
    )
    example = sdft.Example(id="1", messages=(Message(role="user", content="Name a dish."),), reference="Pho.")
    prompt = prompter.infer(example, None, Sampling(max_new_tokens=8))
    assert prompt is not None and prompt.text.startswith("Below is")


def test_what_a_server_cannot_do_is_refused_when_the_recipe_is_read(tmp_path: Path, server: Served) -> None:
    served = {"name": "openai", "base_url": server.url}
    for changes, why in (
        ({"methods": ["sft", "sdft"]}, r"evaluate\.engine\.models: .*sft, sdft"),
        ({"prompt": {"style": "chat", "reply_prefix": "Sure: "}}, "reply_prefix"),
        ({"prompt": {"style": "chat", "max_prompt_tokens": 100}}, "max_prompt_tokens"),
        ({"prompt": {"style": "verbatim", "distill": "alpaca_distill_using", "train": "alpaca"},
          "distill": {"engine": {**served, "endpoint": "chat"}}}, "verbatim prompts are text"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=why):
            sdft.load_recipe(recipe(tmp_path, server, **changes))


def test_tuned_models_go_by_the_servers_names(tmp_path: Path, server: Served) -> None:
    from sdft.console import Console
    from sdft.rundir import RunDir
    from sdft.stages.evaluate import run_evaluate

    tree = recipe(tmp_path, server, methods=["sft"])
    tree["evaluate"]["engine"] = {**tree["evaluate"]["engine"], "models": {"seed": MODEL, "sft": "my-sft"}}
    loaded, run, quiet = sdft.load_recipe(tree), RunDir(tmp_path / "run"), Console(quiet=True)
    run_evaluate(loaded, run, "seed", quiet)
    notes = run_evaluate(loaded, run, "sft", quiet)
    assert [body["model"] for body in server.bodies] == [MODEL] * 5 + ["my-sft"] * 5
    assert notes == ["sft on drift: not measured with this engine: kl, same_argmax"]


def test_what_is_missing_is_said_before_anything_runs(
    tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    tree = recipe(tmp_path, server)
    tree["distill"]["engine"] = {**tree["distill"]["engine"], "api_key_env": "MY_KEY"}
    with pytest.raises(RecipeError, match=r"distill\.engine: the environment variable MY_KEY"):
        sdft.run(tree)
    assert not server.bodies
