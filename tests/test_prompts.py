from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_data import chatml_tokenizer, data_folder
from sdft.data import load_examples, registered
from sdft.errors import PromptError
from sdft.prompts import PromptConfig, Renderer, problems, templates
from sdft.records import Example, Message


def example(*texts: str, reference: str = "Pho.", system: str | None = None) -> Example:
    """Turns by user and assistant in turn, the user's last."""
    turns = [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    head = [Message(role="system", content=system)] if system is not None else []
    return Example(id="e1", messages=(*head, *turns), reference=reference)


DISH = example("Name a dish.")
VERBATIM = PromptConfig(style="verbatim", distill="alpaca_distill_using", train="alpaca")


def test_every_golden_prompt_and_answer_is_met_to_the_letter() -> None:
    golden = data_folder("golden/prompts.jsonl") / "golden/prompts.jsonl"
    data_folder("gsm8k/gsm8k_train.json")
    names = {entry.file: name for name, entry in registered().items()}
    rows = {}
    renderer = Renderer(VERBATIM)
    cases = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    assert len(cases) == 54
    for case in cases:
        if case["file"] not in rows:
            rows[case["file"]] = load_examples(names[case["file"]])
        row = rows[case["file"]][case["row"]]
        prompt = renderer.named(row, case["template"])
        assert prompt.text == case["prompt"], (case["file"], case["row"], case["template"])
        assert row.reference + prompt.end == case["answer"]
        assert prompt.messages is None


def test_llama3_templates_use_headers_and_end_with_their_own_token() -> None:
    config = PromptConfig(style="verbatim", distill="llama3_gsm8k_distill", train="llama3_gsm8k")
    renderer = Renderer(config)
    math = example("1+1?", reference="2")
    prompt = renderer.distill(math)
    assert prompt.text == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nYou are an expert in math. Below are a math question and its "
        "reference answer. Refer to the reference answer and write a response that appropriately answers the question."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1+1?\n\n2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nGreat! Let's think step by step. "
    )
    assert (prompt.stop, prompt.end) == (("<|eot_id|>",), "<|eot_id|>")
    several = renderer.train(example("1+1?", "2", "2+2?", reference="4")).text
    assert (
        "1+1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|><|start_header_id|>user" in several
    )
    assert several.count("<s>") == 1


def test_system_text_comes_from_the_recipe_then_the_example_then_the_template() -> None:
    own = example("Hi", system="Be kind.")
    named = VERBATIM.model_copy(update={"system": "Be brief."})
    assert Renderer(VERBATIM).train(DISH).text.startswith("<s>Below is an instruction")
    assert Renderer(VERBATIM).train(own).text.startswith("<s>Be kind.\n\n### Instruction:\nHi")
    assert Renderer(named).train(own).text.startswith("<s>Be brief.\n\n")
    assert Renderer(VERBATIM.model_copy(update={"system": ""})).train(own).text.startswith("<s>### Instruction:\n")


def test_verbatim_uses_the_tokenizers_own_special_tokens() -> None:
    prompt = Renderer(VERBATIM, chatml_tokenizer()).train(DISH)
    assert prompt.text.startswith("Below is")
    assert prompt.end == "<|eos|>"
    assert Renderer(VERBATIM, chatml_tokenizer(bos="<unk>")).train(DISH).text.startswith("<unk>Below is")


def test_chat_style_goes_through_the_models_own_template() -> None:
    renderer = Renderer(PromptConfig(reply_prefix="Sure: "), chatml_tokenizer())
    row = example("Hi", "Hello", "Name a dish.", system="Be kind.")
    prompt = renderer.train(row)
    assert prompt.text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
        "<|im_end|>\n<|im_start|>user\nName a dish.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (prompt.end, prompt.stop) == ("<|im_end|>", ("<|im_end|>",))
    assert prompt.messages == row.messages
    distill = renderer.distill(row)
    assert distill.text.endswith("### Reference Answer:\nPho.<|im_end|>\n<|im_start|>assistant\nSure: ")
    assert distill.messages is not None
    assert distill.messages[:-1] == row.messages[:-1], "earlier turns stay as they are"
    assert "Name a dish." in distill.messages[-1].content


def test_a_chat_template_that_ends_replies_with_eos_or_nothing() -> None:
    zephyr = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }} {{ eos_token }}\n{% endfor %}"
    assert Renderer(PromptConfig(), chatml_tokenizer(zephyr)).train(DISH).end == " <|eos|>"
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert Renderer(PromptConfig(), chatml_tokenizer(bare)).train(DISH).end == "<|eos|>"


def test_chat_style_without_a_chat_template_says_what_to_do() -> None:
    for tokenizer in (None, chatml_tokenizer("")):
        with pytest.raises(PromptError, match=r"prompt\.style=verbatim"):
            Renderer(PromptConfig(), tokenizer).train(DISH)
    refusing = chatml_tokenizer("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    with pytest.raises(PromptError, match="no system"):
        Renderer(PromptConfig(system="Be kind."), refusing).train(DISH)


def test_infer_falls_back_to_train_and_takes_templates_of_either_style() -> None:
    renderer = Renderer(PromptConfig(infer="{{ instruction }}!"), chatml_tokenizer())
    assert "Name a dish.!<|im_end|>" in renderer.infer(DISH).text
    assert renderer.infer(DISH, "alpaca").messages is None
    assert "### Instruction" in renderer.infer(DISH, "alpaca").text
    assert "describing.\\ + similarlyNow" in renderer.infer(DISH, "gcg").text
    assert "[Name a dish.]<|im_end|>" in renderer.infer(DISH, "[{{ instruction }}]").text
    plain = Renderer(PromptConfig(), chatml_tokenizer())
    assert plain.infer(DISH) == plain.train(DISH)
    with pytest.raises(PromptError, match="reference"):
        renderer.infer(DISH, "using")


def test_a_users_verbatim_template_is_the_whole_prompt() -> None:
    config = PromptConfig(
        style="verbatim",
        train="{{ bos }}{% for turn in history %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
        "Q: {{ instruction }}\n",
        distill="Q: {{ instruction }} R: {{ reference }} A:",
    )
    renderer = Renderer(config)
    assert renderer.train(DISH).text == "<s>Q: Name a dish.\n"
    assert renderer.train(example("Hi", "Hello", "Go on")).text == "<s>user: Hi\nassistant: Hello\nQ: Go on\n"
    assert renderer.distill(DISH).text == "Q: Name a dish. R: Pho. A:"
    with pytest.raises(PromptError, match="earlier turns"):
        renderer.distill(example("Hi", "Hello", "Go on"))


@given(st.text(), st.text(), st.text())
def test_texts_are_never_read_as_jinja(instruction: str, reference: str, system: str) -> None:
    row = example(instruction + "{{ 1 + 1 }}", reference=reference, system=system)
    config = PromptConfig(style="verbatim", distill="{{ system }}|{{ instruction }}|{{ reference }}", train="alpaca")
    assert Renderer(config).distill(row).text == f"{system}|{instruction}{{{{ 1 + 1 }}}}|{reference}"
    assert f"{instruction.lstrip()}{{{{ 1 + 1 }}}}" in Renderer(config).train(row).text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"distill": "usign"}, ["prompt.distill", "did you mean 'using'"]),
        ({"train": "alpaca"}, ["prompt.train", "'alpaca' is a verbatim template"]),
        ({"distill": "{{ instruction }}"}, ["prompt.distill", "{{ reference }}"]),
        ({"distill": "{{ instruction }} {{ refrence }} {{ reference }}"}, ["'refrence'", "did you mean 'reference'"]),
        ({"train": "{{ instruction }} {{ reference }}"}, ["prompt.train", "prompt.distill alone"]),
        ({"train": "using"}, ["prompt.train", "prompt.distill alone"]),
        ({"infer": "{{ system }}"}, ["prompt.infer", "{{ instruction }}"]),
        ({"infer": "{% if instruction %}"}, ["prompt.infer", "not a valid jinja template"]),
        ({"infer": "{{ instruction.nope }}"}, ["prompt.infer", "nope"]),
        ({"infer": "{{ instruction | nope }}"}, ["prompt.infer", "nope"]),
        ({"infer": "{{ instruction.__class__.__mro__ }}"}, ["prompt.infer"]),
        ({"style": "verbatim", "train": "alpaca"}, ["'using' is a chat template", "alpaca_distill_using"]),
        ({"style": "verbatim", "distill": "alpaca_distill_using"}, ["'plain' is a chat template"]),
        ({**VERBATIM.model_dump(), "reply_prefix": "Great!"}, ["prompt.reply_prefix"]),
    ],
)
def test_problems_name_the_key_and_the_way_out(config: dict[str, object], words: list[str]) -> None:
    found = problems(PromptConfig.model_validate(config))
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


def test_sound_configs_have_no_problems_and_two_mistakes_are_both_found() -> None:
    assert problems(PromptConfig()) == []
    assert problems(VERBATIM) == []
    assert problems(PromptConfig(), {"evaluate.benchmarks.0.template": "alpaca_gcg"}) == []
    assert len(problems(PromptConfig(distill="nope", train="nope"))) == 2
    (found,) = problems(PromptConfig(), {"evaluate.benchmarks.0.template": "alpaca_gcq"})
    assert found.startswith("evaluate.benchmarks.0.template") and "did you mean 'alpaca_gcg'" in found


def test_every_named_template_renders() -> None:
    renderer = Renderer(PromptConfig(), chatml_tokenizer())
    wanted = {"octocoder", "alpaca", "alpaca_gcg", "alpaca_distill_refer", "alpaca_distill_using"}
    wanted |= {f"{head}gsm8k{tail}" for head in ("", "llama3_") for tail in ("", "_infer", "_distill")}
    assert {name for name, template in templates().items() if template.style == "verbatim"} == wanted
    for name, template in templates().items():
        prompt = renderer.named(DISH, name)
        assert "Name a dish." in prompt.text
        assert ("Pho." in prompt.text) == ("reference" in template.turn)


def test_an_unknown_name_is_an_error_when_rendering_too() -> None:
    with pytest.raises(PromptError, match="did you mean 'plain'"):
        Renderer(PromptConfig(train="plian"), chatml_tokenizer()).train(DISH)
    with pytest.raises(PromptError, match="did you mean 'alpaca"):
        Renderer(PromptConfig(), chatml_tokenizer()).named(DISH, "alpacca")


LONG = example("Hi", "Hello", "one two three four five six seven eight nine ten", system="Keep this.")


def test_an_over_long_prompt_is_an_error_with_count_and_limit_or_skipped() -> None:
    tokenizer = chatml_tokenizer()
    renderer = Renderer(PromptConfig(), tokenizer)
    prompt = renderer.train(LONG)
    count = len(tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
    assert renderer.fit(prompt, count) is prompt
    with pytest.raises(PromptError, match=f"e1.*{count} tokens.*{count - 1}"):
        renderer.fit(prompt, count - 1)
    assert Renderer(PromptConfig(on_long="skip"), tokenizer).fit(prompt, count - 1) is None
    with pytest.raises(PromptError, match="limit is 5"):
        Renderer(PromptConfig(max_prompt_tokens=5), tokenizer).fit(prompt, count)


@pytest.mark.parametrize("style", ["chat", "verbatim"])
def test_truncate_left_cuts_the_beginning_of_the_instruction_and_nothing_else(style: str) -> None:
    tokenizer = chatml_tokenizer()
    base = PromptConfig() if style == "chat" else VERBATIM
    renderer = Renderer(base.model_copy(update={"on_long": "truncate_left"}), tokenizer)
    whole = renderer.distill(LONG)
    count = len(tokenizer(whole.text, add_special_tokens=False)["input_ids"])
    cut = renderer.fit(whole, count - 6)
    assert cut is not None
    assert len(tokenizer(cut.text, add_special_tokens=False)["input_ids"]) <= count - 6
    start = whole.text.index("one two")
    assert cut.text.startswith(whole.text[:start])
    assert whole.text.endswith(cut.text[start:])
    assert "one" not in cut.text and "nine ten" in cut.text and "Pho." in cut.text
    if cut.messages is not None:
        assert cut.text == renderer.distill(cut.origin.example).text
        assert cut.messages[-1].content in cut.text
    with pytest.raises(PromptError, match="without its instruction"):
        renderer.fit(whole, 20)


def test_counting_needs_a_tokenizer() -> None:
    renderer = Renderer(VERBATIM)
    with pytest.raises(PromptError, match="tokenizer"):
        renderer.fit(renderer.train(DISH), 100)
