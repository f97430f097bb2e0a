"""Example → the text that the model continues.

    verbatim, template alpaca, no tokenizer:
        <s>Below is an instruction … request.\n\n### Instruction:\nName a dish.\n\n### Response:\n     then: Pho.</s>
    chat, template plain, a ChatML model:
        <|im_start|>user\nName a dish.<|im_end|>\n<|im_start|>assistant\n                    then: Pho.<|im_end|>

Templates that have a name stand in templates.yaml; anything with `{{` or `{%` is a user's own jinja text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from sdft import errors, thinking
from sdft.errors import PromptError
from sdft.records import Example, Message, Settings

if TYPE_CHECKING:
    import jinja2
    from transformers import PreTrainedTokenizerBase

Style = Literal["chat", "verbatim"]
THINKING: dict[str, dict[str, Any]] = {
    "always": {"enable_thinking": True},
    "never": {"enable_thinking": False},
    "auto": {},
    "keep": {},
}
"""What the setting `thinking` tells a chat template."""
SHOWN = re.compile(r"\{\{ (\w+)")


class PromptConfig(Settings):
    """How examples become prompts.

    `style: chat` puts texts into the model's own chat template; `style: verbatim` uses whole prompt templates
    such as the reference implementation's. Each of `distill`, `train` and `infer` is a name from
    `sdft list templates` or a jinja string with `instruction`, `reference` (distill only) and `system`.
    A verbatim jinja string is the whole prompt; it also has `bos`, `eos` and `history` (turns with `role` and
    `content`), and must use `history` where examples have earlier turns.
    """

    style: Style = "chat"
    system: str | None = None
    """System text. None: the example's own; in verbatim style: the example's own, else the template's."""
    distill: str = "using"
    """The prompt that shows instruction and reference and asks for a rewrite."""
    train: str = "plain"
    """The plain prompt to train with."""
    infer: str | None = None
    """The plain prompt for evaluation; None: the same as `train`."""
    reply_prefix: str = ""
    """Text that begins the rewrite for the model; it is not part of the rewrite. Chat style; verbatim
    templates bring their own."""
    thinking: Literal["auto", "always", "never", "keep"] = "auto"
    """For models that think before they reply. `always` and `never` ask the chat template for it
    (`enable_thinking`), `auto` leaves it to the template; what stands in `<think>…</think>` is kept out of the
    reply, and counted. `keep`: as `auto`, and the thought is part of the reply."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Prompts longer than this are over-long. None: what the model's context leaves after the reply."""
    on_long: Literal["error", "skip", "truncate_left"] = "error"
    """What to do with over-long prompts; they are never cut silently. `truncate_left` cuts the beginning of the
    last user turn's own text, never the template, the system text, earlier turns or the reference."""


class Template(Settings):
    """A prompt template; its texts are jinja."""

    style: Style
    description: str
    turn: str
    """Chat: the content of the last user turn. Verbatim: a user turn up to where the reply begins, or the
    whole prompt where there is no `head`."""
    head: str | None = None
    """What stands before the first turn; where no system text is left, the BOS alone stands there."""
    system: str | None = None
    """The system text where neither recipe nor example has one."""
    separator: str = ""
    """What stands between a reply's end and the next turn."""
    end: str | None = None
    """What ends a reply; None: the tokenizer's EOS."""
    stop: tuple[str, ...] = ()
    """Strings that end generation, beside EOS."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a prompt was rendered from, so that it can be rendered again with a shorter instruction."""

    template: Template
    example: Example
    reference: str | None
    prefix: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    text: str
    """The whole text that the model continues, special tokens written out."""
    stop: tuple[str, ...]
    """Strings that end generation, beside EOS."""
    end: str
    """What ends the reply in training."""
    messages: tuple[Message, ...] | None
    """The same prompt as turns, in chat style; a reply prefix is not among them."""
    origin: Origin


def templates() -> dict[str, Template]:
    """Every named template; no name stands in both styles."""
    return dict(_named())


@functools.cache
def _named() -> dict[str, Template]:
    text = resources.files("sdft").joinpath("templates.yaml").read_text(encoding="utf-8")
    data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    styles: tuple[Style, ...] = ("chat", "verbatim")
    return {name: Template(style=style, **fields) for style in styles for name, fields in data[style].items()}


def problems(config: PromptConfig, others: Mapping[str, str] | None = None) -> list[str]:
    """Everything that is wrong with a recipe's templates, found without a model.

    `others` are plain templates from elsewhere in the recipe, by the key to be named: a benchmark's `template`.
    """
    found = _check("prompt.distill", config.distill, _strictly, config.style, {"instruction", "reference"})
    found += _check("prompt.train", config.train, _strictly, config.style, {"instruction"})
    if config.infer is not None:
        found += _check("prompt.infer", config.infer, _strictly, config.style, {"instruction"})
    for where, text in (others or {}).items():
        found += _check(where, text, _freely, config.style, {"instruction"})
    if config.style == "verbatim" and config.reply_prefix:
        found.append(
            "prompt.reply_prefix: for chat style; a verbatim template ends with its own beginning of the reply"
        )
    return found


def named_problems(where: str, text: str, style: Style) -> list[str]:
    """What is wrong with a template for `Renderer.named`, which may show what it likes; found without an example."""
    return _check(where, text, _freely, style, set(), {"reference"})


def _check(
    where: str,
    text: str,
    resolve: Callable[[str, Style], Template],
    style: Style,
    shown: set[str],
    others: Iterable[str] = (),
) -> list[str]:
    """What is wrong with one template that must show `shown`, and may show `others` beside what every one may."""
    try:
        template = resolve(text, style)
        # Our own templates are plain enough to be read without jinja, whose import would slow every start.
        used = _variables(template.turn) if _is_jinja(text) else frozenset(SHOWN.findall(template.turn))
    except PromptError as error:
        return [f"{where}: {error}"]
    known = {"instruction", "system", *shown, *others}
    known |= {"bos", "eos", "history"} if template.style == "verbatim" else set()
    found = [f"{where}: does not show {{{{ {name} }}}}" for name in sorted(shown - used)]
    for name in sorted(used - known):
        if name == "reference":
            found.append(f"{where}: shows {{{{ reference }}}}, which belongs into prompt.distill alone")
        else:
            found.append(f"{where}: unknown variable '{name}'{did_you_mean(name, known)}")
    try:  # what only comes up when it runs, such as an attribute that is not there
        if not found and _is_jinja(text):
            _jinja(template.turn, {name: [] if name == "history" else name for name in known})
    except PromptError as error:
        found.append(f"{where}: {error}")
    return found


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def _strictly(text: str, style: Style) -> Template:
    """A template of this style by name, or a jinja string. Raises PromptError."""
    if _is_jinja(text):
        return Template(style=style, description="from the recipe", turn=text)
    template = _named().get(text)
    if template is None or template.style != style:
        own = [name for name, other in _named().items() if other.style == style]
        close = did_you_mean(text, own)
        what = f"no {style} template '{text}'" if template is None else f"'{text}' is a {template.style} template"
        raise PromptError(f"{what}, and prompt.style is {style}{close}")
    return template


def _freely(text: str, style: Style) -> Template:
    """A template of either style by name, or a jinja string of this style. Raises PromptError."""
    template = _named().get(text)
    if template is None and not _is_jinja(text):
        raise PromptError(f"no template '{text}'{did_you_mean(text, _named())}")
    return template or _strictly(text, style)


class Renderer:
    """Renders examples for one model. Without a tokenizer, verbatim templates write `<s>` and `</s>`.

    Every method that renders raises PromptError: for a template that does not exist or does not suit the
    example, and in chat style without a chat template.
    """

    def __init__(self, config: PromptConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._bos: str = "<s>" if tokenizer is None else str(tokenizer.bos_token or "")
        self._eos: str = "</s>" if tokenizer is None else str(tokenizer.eos_token or "")
        self._chat_end: str | None = None

    def distill(self, example: Example) -> Prompt:
        """The prompt that shows the reference and asks for a rewrite."""
        template = _strictly(self.config.distill, self.config.style)
        prefix = self.config.reply_prefix if self.config.style == "chat" else ""
        return self._render(Origin(template, example, example.reference, prefix))

    def train(self, example: Example) -> Prompt:
        """The plain prompt to train with. A thought that a chat template begins is ended, for the reply is none."""
        prompt = self._render(Origin(_strictly(self.config.train, self.config.style), example, None, ""))
        return prompt if self.config.thinking == "keep" else replace(prompt, text=thinking.ended(prompt.text))

    def infer(self, example: Example, template: str | None = None) -> Prompt:
        """The plain prompt for evaluation; `template` goes before the recipe's and may be of either style."""
        if template is not None:
            return self._render(Origin(_freely(template, self.config.style), example, None, ""))
        name = self.config.train if self.config.infer is None else self.config.infer
        return self._render(Origin(_strictly(name, self.config.style), example, None, ""))

    def named(self, example: Example, template: str) -> Prompt:
        """The prompt of any template, of either style; the reference is shown where it asks for it."""
        return self._render(Origin(_freely(template, self.config.style), example, example.reference, ""))

    def fit(self, prompt: Prompt, room: int) -> Prompt | None:
        """Hold a prompt to `room` tokens, or to the recipe's `max_prompt_tokens` where that is less.

        An over-long one raises PromptError (`on_long: error`), gives None (`skip`), or comes back with the
        beginning of its instruction cut (`truncate_left`), which raises PromptError where that is not enough.
        """
        limit = min(room, self.config.max_prompt_tokens or room)
        count = self._count(prompt)
        if count <= limit:
            return prompt
        if self.config.on_long == "skip":
            return None
        what = f"example {prompt.origin.example.id}: its prompt has {count} tokens, the limit is {limit}"
        if self.config.on_long == "error":
            raise PromptError(f"{what}; set prompt.on_long to skip or truncate_left, or allow more tokens")
        shorter = self._cut(prompt.origin, limit)
        if shorter is None:
            raise PromptError(f"{what}, and it is too long even without its instruction; set prompt.on_long=skip")
        return shorter

    def _count(self, prompt: Prompt) -> int:
        if self.tokenizer is None:
            raise PromptError("tokens can only be counted with a tokenizer; give the renderer that of the model")
        return len(self.tokenizer(prompt.text, add_special_tokens=False, verbose=False)["input_ids"])

    def _cut(self, origin: Origin, limit: int) -> Prompt | None:
        """Search for the longest end of the instruction that fits; None where not one character does."""
        *before, last = origin.example.messages
        best: Prompt | None = None
        low, high = 1, len(last.content) - 1
        while low <= high:
            middle = (low + high) // 2
            rest = last.model_copy(update={"content": last.content[middle:]})
            example = origin.example.model_copy(update={"messages": (*before, rest)})
            prompt = self._render(replace(origin, example=example))
            if self._count(prompt) <= limit:
                best, high = prompt, middle - 1
            else:
                low = middle + 1
        return best

    def _render(self, origin: Origin) -> Prompt:
        system = self.config.system if self.config.system is not None else origin.example.system
        if origin.template.style == "chat":
            return self._chat(origin, system or "")
        system = origin.template.system if system is None else system
        render = self._whole if origin.template.head is None else self._turns
        end = self._eos if origin.template.end is None else origin.template.end
        return Prompt(render(origin, system or "", end), origin.template.stop, end, None, origin)

    def _whole(self, origin: Origin, system: str, end: str) -> str:
        """A user's own verbatim template, which is all of the prompt."""
        example = origin.example
        if example.history and "history" not in _variables(origin.template.turn):
            raise PromptError(
                f"example {example.id}: it has earlier turns, which the template does not show; put "
                "{% for turn in history %} … {{ turn.content }} … {% endfor %} into it"
            )
        special = {"bos": self._bos, "eos": end, "history": example.history}
        return _jinja(origin.template.turn, _values(example.instruction, origin.reference, system) | special)

    def _turns(self, origin: Origin, system: str, end: str) -> str:
        """A named verbatim template: earlier turns in the same form, each with its own reply as reference."""
        template, bos = origin.template, {"bos": self._bos}
        text = _jinja(template.head or "", {"system": system, **bos}) if system else self._bos
        separator = _jinja(template.separator, bos)
        for user, reply in _pairs(origin.example):
            shown = None if origin.reference is None else reply
            text += _jinja(template.turn, _values(user, shown, system) | bos) + reply + end + separator
        return text + _jinja(template.turn, _values(origin.example.instruction, origin.reference, system) | bos)

    def _chat(self, origin: Origin, system: str) -> Prompt:
        turns = _turns_of(origin, system)
        end = self._end_of_reply()
        text = self._apply(turns, add_generation_prompt=True) + origin.prefix
        return Prompt(text, (end.strip(),) if end.strip() else (), end, tuple(turns), origin)

    def _apply(self, turns: list[Message], add_generation_prompt: bool) -> str:
        import jinja2

        way_out = "use a chat (instruct) model, or prompt.style=verbatim"
        if self.tokenizer is None:
            raise PromptError(f"chat style needs a model's tokenizer; {way_out}")
        if not self.tokenizer.chat_template:
            raise PromptError(f"{self.tokenizer.name_or_path or 'the tokenizer'} has no chat template; {way_out}")
        try:
            text = self.tokenizer.apply_chat_template(
                [turn.model_dump() for turn in turns],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **THINKING[self.config.thinking],
            )
        except jinja2.TemplateError as error:
            raise PromptError(f"the model's chat template refuses a conversation ({error})") from None
        return str(text)

    def _end_of_reply(self) -> str:
        """What the chat template puts behind a reply, up to the end-of-turn token; EOS where it puts nothing."""
        if self._chat_end is None:
            reply = "SDFT-REPLY"
            turns = [Message(role="user", content="Hello"), Message(role="assistant", content=reply)]
            after = self._apply(turns, add_generation_prompt=False).rpartition(reply)[2]
            assert self.tokenizer is not None
            special = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
            ends = [after.index(token) + len(token) for token in special if token in after]
            self._chat_end = after[: min(ends)] if ends else after.strip() or self._eos
        return self._chat_end


class TurnsRenderer(Renderer):
    """Renders chat prompts as turns alone, for a server that applies the chat template itself: no tokenizer needed.

    Verbatim templates get no BOS, which such a server puts before a text by itself.
    """

    def __init__(self, config: PromptConfig) -> None:
        super().__init__(config)
        self._bos = ""

    def _chat(self, origin: Origin, system: str) -> Prompt:
        if origin.prefix:
            raise PromptError("prompt.reply_prefix: a server cannot be given the beginning of a reply as turns")
        turns = _turns_of(origin, system)
        return Prompt("\n\n".join(turn.content for turn in turns), (), "", tuple(turns), origin)


def _turns_of(origin: Origin, system: str) -> list[Message]:
    """A chat prompt's turns, before any chat template."""
    content = _jinja(origin.template.turn, _values(origin.example.instruction, origin.reference, system))
    turns = [Message(role="system", content=system)] if system else []
    return [*turns, *origin.example.history, Message(role="user", content=content)]


def _pairs(example: Example) -> list[tuple[str, str]]:
    """Earlier turns as (user's text, reply)."""
    roles = [turn.role for turn in example.history]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise PromptError(f"example {example.id}: its earlier turns do not go user, assistant, user, assistant …")
    texts = [turn.content for turn in example.history]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _values(instruction: str, reference: str | None, system: str) -> dict[str, Any]:
    """A reference that is None is left undefined, so that a template that wants it is an error."""
    values = {"instruction": instruction, "system": system}
    return values if reference is None else {**values, "reference": reference}


@functools.cache
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().from_string(text)
    except jinja2.TemplateError as error:
        raise PromptError(f"not a valid jinja template ({error})") from None


@functools.lru_cache(maxsize=256)
def _variables(text: str) -> frozenset[str]:
    from jinja2 import meta

    _compiled(text)
    return frozenset(meta.find_undeclared_variables(_environment().parse(text)))


def _jinja(text: str, values: Mapping[str, Any]) -> str:
    import jinja2

    try:
        return _compiled(text).render(values)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PromptError(f"the template fails when it is rendered ({error})") from None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """As that of `errors`, but a name that holds the whole word goes first."""
    names = sorted(options)
    holding = [name for name in names if word in name]
    return f"; did you mean '{holding[0]}'?" if holding else errors.did_you_mean(word, names)
