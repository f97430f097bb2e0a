"""The transformers engine against `generate` and against itself."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import sdft.engines.transformers
from helpers_models import WORDS, save_tiny_model
from sdft import memory
from sdft.engines import Continuation, Request, Sampling, TransformersSettings
from sdft.engines._sampling import next_tokens
from sdft.engines.transformers import TransformersEngine
from sdft.errors import EngineError, ModelError
from sdft.models import ModelConfig, resolve

DType = Literal["float32", "bfloat16"]
Replies = dict[str, Any]
GREEDY = Sampling(max_new_tokens=24)
SAMPLED = Sampling(temperature=0.9, top_p=0.8, top_k=40, max_new_tokens=24)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama") / "model")


def requests(count: int, seed: int = 0) -> list[Request]:
    """Prompts of 1 to 60 words."""
    rng = random.Random(seed)
    return [
        Request(id=str(i), prompt=" ".join(rng.choices(WORDS, k=rng.randint(1, 60))), seed=rng.randrange(2**62))
        for i in range(count)
    ]


def texts(folder: Path, asked: list[Request], sampling: Sampling, batch: int, dtype: DType = "float32") -> Replies:
    engine = TransformersSettings(max_batch_size=batch).open(ModelConfig(name=str(folder), dtype=dtype, device="cpu"))
    return {done.id: done for done in engine.generate(asked, sampling)}


def test_the_batch_is_as_large_as_memory_allows(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(name=str(llama), dtype="float32", device="cpu")
    assert TransformersEngine(TransformersSettings(), model).rows_at_once == 32
    shape = memory.local_shape(model)
    assert shape is not None
    row = memory.USUAL_TOKENS * shape.cache_bytes("float32", "cpu")
    monkeypatch.setattr(sdft.engines.transformers, "free_memory", lambda device: 5.5 * row / memory.USABLE)
    assert TransformersEngine(TransformersSettings(), model).rows_at_once == 5
    assert TransformersEngine(TransformersSettings(max_batch_size=9), model).rows_at_once == 9
    monkeypatch.setattr(sdft.engines.transformers, "free_memory", lambda device: 10)
    assert TransformersEngine(TransformersSettings(), model).rows_at_once == 1
    assert memory.rows_that_fit(1e12, 1000, "cuda") == 256


def test_out_of_memory_halves_the_batch_and_goes_on_to_the_same_replies(llama: Path) -> None:
    asked = requests(14)
    calm = texts(llama, asked, SAMPLED, batch=16)
    engine = TransformersSettings(max_batch_size=16).open(ModelConfig(name=str(llama), dtype="float32", device="cpu"))
    decode, steps = engine._decode, 0

    def small(active: list[Any], *rest: Any) -> list[int]:
        nonlocal steps
        steps += 1
        if len(active) > 4 and steps > 3:
            raise torch.OutOfMemoryError("made")
        return decode(active, *rest)

    engine._decode = small  # type: ignore[method-assign]
    found = list(engine.generate(iter(asked), SAMPLED))
    assert {done.id: done for done in found} == calm and len(found) == 14
    assert engine.notes() == ["the device was out of memory at max_batch_size=16: went on with 4"]

    def never(active: list[Any], *rest: Any) -> list[int]:
        raise torch.OutOfMemoryError("made")

    engine._decode = never  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="out of memory with a single row"):
        list(engine.generate(iter(asked), SAMPLED))


def test_greedy_replies_are_those_of_generate(folder: Path) -> None:
    asked = requests(12)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    got = texts(folder, asked, GREEDY, batch=5)
    for request in asked:
        ids = tokenizer(request.prompt, return_tensors="pt", add_special_tokens=False)
        whole = model.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
        assert got[request.id].text == tokenizer.decode(whole, skip_special_tokens=True)
        assert got[request.id].tokens == len(whole)
        assert got[request.id].finish == ("stop" if whole[-1] == tokenizer.eos_token_id else "length")


def test_every_request_is_answered_once_and_lazily(llama: Path) -> None:
    taken: list[str] = []

    def stream() -> Any:
        for request in requests(40):
            taken.append(request.id)
            yield request

    engine = TransformersSettings(max_batch_size=6).open(ModelConfig(name=str(llama)))
    first = next(done := engine.generate(stream(), GREEDY))
    assert len(taken) < 40
    assert sorted([first.id, *(c.id for c in done)], key=int) == [str(i) for i in range(40)]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), at_once=st.integers(2, 400), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_replies_scored_together_have_the_scores_of_each_alone(
    folder: Path, seed: int, at_once: int, dtype: DType
) -> None:
    rng = random.Random(seed)
    items = [
        Continuation(r.id, r.prompt, "".join(f" {w}" for w in rng.choices(WORDS, k=rng.randint(0, 30))))
        for r in requests(12, seed)
    ]
    config = ModelConfig(name=str(folder), dtype=dtype, device="cpu")
    alone = TransformersSettings(prefill_tokens=1).open(config)
    together = TransformersSettings(prefill_tokens=at_once).open(config)
    tolerance = 1e-4 if dtype == "float32" else 0.2  # logits of the tiny model are large; bf16 has 8 bits
    for item, one, other in zip(items, alone.logprobs(items), together.logprobs(items), strict=True):
        assert one.id == other.id == item.id
        assert one.tokens == other.tokens
        assert other.logprobs == pytest.approx(one.logprobs, abs=tolerance)
    for one, other in zip(alone.distributions(items), together.distributions(items), strict=True):
        assert torch.allclose(one, other, atol=tolerance)


def test_an_item_that_cannot_be_scored_comes_after_those_before_it(llama: Path) -> None:
    engine = TransformersSettings().open(ModelConfig(name=str(llama), device="cpu"))
    scores = engine.logprobs([Continuation("a", "the cat", " is"), Continuation("b", "cat " * 600, " is")])
    assert next(scores).id == "a"
    with pytest.raises(EngineError, match=r"logprobs of 'b': \d+ \+ 1 tokens exceed the model's 512"):
        next(scores)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 17),
    seed=st.integers(0, 5),
    keep=st.sets(st.integers(0, 19), min_size=1),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_reply_does_not_depend_on_its_neighbours(
    llama: Path, batch: int, seed: int, keep: set[int], dtype: DType
) -> None:
    asked = requests(20, seed)
    whole = texts(llama, asked, SAMPLED, 8, dtype)
    part = texts(llama, [asked[i] for i in sorted(keep)], SAMPLED, batch, dtype)
    assert part == {key: whole[key] for key in part}
    assert len(part) == len(keep)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 9), keep=st.sets(st.integers(0, 19), min_size=1))
def test_a_shared_prefix_changes_no_greedy_reply_and_no_reply_by_its_neighbours(
    llama: Path, batch: int, keep: set[int]
) -> None:
    shared = "reference answer and instruction response using the guide to write your own "
    plain = [replace(r, prompt=shared + r.prompt) for r in requests(16)]
    plain += [replace(r, id=f"x{r.id}") for r in requests(4, 1)]
    asked = [replace(r, prefix=shared) for r in plain]
    assert texts(llama, plain, GREEDY, 8) == texts(llama, asked, GREEDY, 8)
    for dtype in ("float32", "bfloat16"):
        whole = texts(llama, asked, SAMPLED, 8, dtype)
        part = texts(llama, [asked[i] for i in sorted(keep)], SAMPLED, batch, dtype)
        assert part == {key: whole[key] for key in part}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_rows_of_all_lengths_that_come_and_go_do_not_disturb_each_other(llama: Path, dtype: DType) -> None:
    rng = random.Random(3)
    asked = [
        Request(id=str(i), prompt=" ".join(rng.choices(WORDS, k=rng.choice([2, 20, 90, 180]))), seed=i)
        for i in range(60)
    ]
    sampling = SAMPLED.model_copy(update={"max_new_tokens": 90})  # slots grow, shrink and move between blocks
    whole = texts(llama, asked, sampling, 37, dtype)
    assert len({done.tokens for done in whole.values()}) > 3
    part = texts(llama, asked[::5], sampling, 5, dtype)
    assert part == {key: whole[key] for key in part}


def test_requests_with_different_prefixes_are_all_answered(llama: Path) -> None:
    heads = ["the cat is in a tree of red and blue and one two ", "how many apple in what house is it to answer of "]
    asked = [replace(r, prompt=heads[i % 2] + r.prompt, prefix=heads[i % 2]) for i, r in enumerate(requests(9))]
    plain = [replace(r, prefix="") for r in asked]
    assert texts(llama, asked, GREEDY, 4) == texts(llama, plain, GREEDY, 4)


def test_seeds_change_sampled_replies(llama: Path) -> None:
    prompt = "what is the sum of one and two"
    done = texts(llama, [Request(id=str(i), prompt=prompt, seed=i) for i in range(8)], SAMPLED, 8)
    assert len({c.text for c in done.values()}) > 4


def test_stop_strings_end_the_reply_and_are_not_part_of_it(llama: Path) -> None:
    plain = texts(llama, [Request(id="a", prompt="the cat is")], Sampling(max_new_tokens=40), 4)["a"].text
    stop = plain[9:12]
    done = texts(llama, [Request(id="a", prompt="the cat is", stop=(stop,))], Sampling(max_new_tokens=40), 4)["a"]
    assert done.finish == "stop"
    assert done.text == plain[: plain.find(stop)]


def test_a_suspended_engine_leaves_torch_as_it_was(llama: Path) -> None:
    engine = TransformersSettings(max_batch_size=4).open(ModelConfig(name=str(llama)))
    replies, scores = engine.generate(requests(9), GREEDY), engine.distributions([Continuation("a", "the", " cat")] * 2)
    assert next(replies).text is not None
    assert not next(scores).requires_grad
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad is not None


def test_a_prompt_without_room_is_an_error_row(llama: Path) -> None:
    asked = [Request(id="long", prompt="cat " * 600), Request(id="empty", prompt=""), Request(id="ok", prompt="dog")]
    done = texts(llama, asked, GREEDY, 4)
    assert [done[key].finish == "error" for key in ("long", "empty", "ok")] == [True, True, False]
    assert "512" in (done["long"].error or "")


def test_logprobs_are_those_of_the_model(folder: Path) -> None:
    engine = TransformersSettings().open(ModelConfig(name=str(folder), dtype="float32"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    items = [Continuation("a", "what is the", " answer of one"), Continuation("b", "a", " red house and a tree")]
    for item, got, full in zip(items, engine.logprobs(items), engine.distributions(items), strict=True):
        prompt = engine.tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
        reply = engine.tokenizer(item.reply, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert got.tokens == tuple(reply)
        assert torch.allclose(full, logits, atol=1e-4)
        assert torch.allclose(
            torch.tensor(got.logprobs), logits.gather(-1, torch.tensor(reply)[:, None])[:, 0], atol=1e-4
        )


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (0, 0.7), (0, 0.999), (50, 1.0), (50, 0.7), (1, 0.5), (5, 0.01)]
)
def test_sampling_draws_from_the_distribution_of_transformers(top_k: int, top_p: float) -> None:
    torch.manual_seed(top_k)
    logits = torch.randn(1, 3000) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.95)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits).softmax(-1)[0]
    draws = 4000
    sampling = Sampling(temperature=0.95, top_k=top_k, top_p=top_p)
    got = torch.zeros(3000)
    for start in range(0, draws, 500):
        generators = [random.Random(start + i) for i in range(500)]
        for token in next_tokens(logits.expand(500, -1), sampling, generators):
            got[token] += 1
    assert not ((expected == 0) & (got > 0)).any()
    # each count is binomial: none of the likely tokens is off by more than 5 standard deviations
    likely = expected > 0.002
    spread = (draws * expected * (1 - expected)).sqrt()
    assert ((got - draws * expected).abs()[likely] <= 5 * spread[likely] + 1e-6).all()


def test_folder_without_config_and_pickled_weights_are_refused(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="safetensors"):
        resolve(ModelConfig(name=str(tmp_path)))
    with pytest.raises(ModelError, match="no such folder"):
        resolve(ModelConfig(name="./nowhere"))


@pytest.mark.parametrize("kind", ["granite", "gemma2"])
def test_logits_that_are_scaled_or_capped_are_the_models_own(kind: str, llama: Path, tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(llama)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model: Any = (
        GraniteForCausalLM(GraniteConfig(logits_scaling=8.0, **shape, **heads))
        if kind == "granite"
        else Gemma2ForCausalLM(Gemma2Config(head_dim=12, final_logit_softcapping=0.5, **shape, **heads))
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersSettings().open(ModelConfig(name=str(tmp_path), dtype="float32"))
    ids = engine.tokenizer("the cat is", add_special_tokens=False)["input_ids"]
    reply = engine.tokenizer(" in a tree", add_special_tokens=False)["input_ids"]
    expected = model.eval()(torch.tensor([ids + reply])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    assert torch.allclose(
        next(engine.distributions([Continuation("a", "the cat is", " in a tree")])), expected, atol=1e-4
    )
    done = next(engine.generate([Request("a", "the cat is")], GREEDY))
    whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)[0, len(ids) :]
    assert done.text == tokenizer.decode(whole, skip_special_tokens=True)


def test_an_adapter_of_fewer_layers_or_in_a_pickle_is_refused(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    small = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "small", num_hidden_layers=1))
    adapter = tmp_path / "adapter"
    get_peft_model(small, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    with pytest.raises(ModelError, match="does not fit"):
        TransformersSettings().open(ModelConfig(name=str(llama), adapter=str(adapter)))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        TransformersSettings().open(ModelConfig(name=str(llama), adapter=str(adapter)))


def test_an_adapter_for_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    other = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "wide", hidden_size=64))
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not fit"):
        TransformersSettings().open(ModelConfig(name=str(llama), adapter=str(tmp_path / "adapter")))


def test_an_adapter_changes_replies_as_peft_does(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    config = ModelConfig(name=str(llama), adapter=str(tmp_path / "adapter"), dtype="float32")
    engine = TransformersSettings().open(config)
    item = Continuation("a", "what is the sum", " of one and two")
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    prompt, reply = (engine.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (item.prompt, item.reply))
    expected = peft(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert torch.allclose(next(engine.distributions([item])), expected, atol=1e-3)
