"""A recipe: YAML and `key=value` → typed settings, with every error at once.

Values come from defaults, then the recipes that the file extends, then the YAML file, then `key=value` from the
command line. A plain string stands for `{name: string}` where a section has a name: models, engines, checks and
benchmarks.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from sdft.benchmarks import AnyBenchmark
from sdft.checks import AnyCheck, Leak
from sdft.data.config import DataConfig
from sdft.engines import AnyEngine, OpenAISettings, Sampling, TransformersSettings
from sdft.errors import RecipeError, did_you_mean
from sdft.models import ModelConfig
from sdft.prompts import PromptConfig
from sdft.prompts import problems as prompt_problems
from sdft.records import Settings

NAMED = (
    ("model",),
    ("distill", "engine"),
    ("select", "checks"),
    ("evaluate", "engine"),
    ("evaluate", "benchmarks"),
)
"""Where a plain string stands for `{name: string}`."""


SHIPPED = Path(__file__).with_name("recipes")
"""The recipes that come with sdft."""


def named(value: Any) -> Any:
    """A plain string as `{"name": string}`; anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


class DistillConfig(Sampling):
    """How the seed model rewrites the dataset's replies."""

    engine: AnyEngine = TransformersSettings()
    candidates: int = Field(default=1, ge=1)
    """Rewrites tried for each example; a later one is only generated where the earlier ones failed the checks."""
    temperature: float = Field(default=0.95, ge=0)
    top_p: float = Field(default=0.7, gt=0, le=1)
    top_k: int = Field(default=50, ge=0)

    @model_validator(mode="after")
    def _candidates_differ(self) -> DistillConfig:
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError("candidates: greedy decoding gives the same reply each time; set temperature above 0")
        return self

    @property
    def sampling(self) -> Sampling:
        """The decoding settings alone."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.model_fields})


class SelectConfig(Settings):
    """Which rewrites replace the original."""

    checks: tuple[AnyCheck, ...] = (Leak(),)
    """Applied in this order; the first that refuses gives the reason."""
    keep_truncated: bool = False
    """Keep rewrites that were cut at the token limit."""


class LoraConfig(Settings):
    """A LoRA adapter, in PEFT's terms."""

    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    """Module names, `all-linear`, or a regular expression over whole module paths."""


class TrainConfig(Settings):
    """Fine-tuning, in the Trainer's terms."""

    distilled_fraction: float = Field(default=1.0, ge=0, le=1)
    """Method sdft: share of the rewritten rows that train on their rewrite; the others keep their original reply.

    Which rows is decided by the seed, and a row stays in as the fraction grows.
    """
    epochs: float = Field(default=2, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    lora: LoraConfig | None = LoraConfig()
    """null trains all weights."""
    per_device_train_batch_size: int = Field(default=2, ge=1)
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    lr_scheduler_type: Literal["cosine", "linear", "polynomial", "inverse_sqrt", "constant", "constant_with_warmup"] = (
        "cosine"
    )
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    max_length: int = Field(default=1024, ge=8)
    """Tokens of prompt and reply together."""
    on_long: Literal["error", "skip", "truncate"] = "truncate"
    """Examples longer than `max_length`: `truncate` cuts the end of the reply, counted in the manifest."""
    packing: bool = False
    """Put several examples into one row of `max_length` tokens, each blind to the others."""
    gradient_checkpointing: bool = False
    bf16: bool | None = None
    """Mixed precision. None: on where the device computes it natively."""
    logging_steps: int = Field(default=10, ge=1)
    save_steps: int = Field(default=200, ge=1)
    """A checkpoint to resume from, every so many optimizer steps."""
    report_to: tuple[str, ...] = ()
    """`wandb`, `mlflow`, `tensorboard` …: transformers' own integrations, set up by their own environment variables."""


class EvaluateConfig(Settings):
    """What is measured on the seed and on each tuned model."""

    benchmarks: tuple[AnyBenchmark, ...] = ()
    engine: AnyEngine = TransformersSettings()
    sampling: Sampling = Sampling()
    expected_gain: float = Field(default=0.1, gt=0, le=1)
    """The gain on the task that you hope for, as a share: a warning says where a test set is too small to show it."""

    @field_validator("benchmarks")
    @classmethod
    def _unique(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [benchmark.label or benchmark.name for benchmark in value]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"'{name}' stands twice; give one of them another `label`")
        return value

    @model_validator(mode="after")
    def _decoding_suits(self) -> EvaluateConfig:
        found = [
            f"'{b.label or b.name}': {why}" for b in self.benchmarks for why in b.conflicts(b.sampling or self.sampling)
        ]
        if found:
            raise ValueError(f"benchmarks: {'; '.join(found)}")
        return self


class AnalyzeConfig(Settings):
    """What is measured beside the benchmarks, for the report."""

    nll: bool = True
    """How unlikely the seed and each tuned model find the original and the distilled replies."""
    similarity: bool | None = None
    """How like each tuned model's replies are to the seed's: embeddings, BLEU-4, ROUGE-L. None: what can be had here
    (all but embeddings come with `pip install 'sdft[eval]'`); true: missing packages are an error."""
    weights: bool = True
    """How far training moved the weights, by layer."""
    rows: int | None = Field(default=200, ge=1)
    """At most so many examples, and so many replies to each benchmark, drawn by the seed; null: all."""
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """The sentence encoder: a hub name or folder whose embedding is the mean over tokens."""


Method = Literal["sft", "sdft"]
METHODS: dict[Method, str] = {
    "sft": "fine-tune on the original replies (vanilla)",
    "sdft": "fine-tune on the distilled replies",
}


class Recipe(Settings):
    """A whole run, from a dataset and a seed model to adapters and a report."""

    name: str = ""
    """Name of the run folder; default: the recipe file's name."""
    output_dir: str = "runs"
    """Run folders stand in here."""
    model: ModelConfig
    data: DataConfig | None = None
    """What to train on. Not needed where nothing is trained: `methods: []`."""
    prompt: PromptConfig = PromptConfig()
    distill: DistillConfig = DistillConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    methods: tuple[Method, ...] = Field(default=("sft", "sdft"), validate_default=True)
    evaluate: EvaluateConfig = EvaluateConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    seed: int = Field(default=0, ge=0)

    @field_validator("methods")
    @classmethod
    def _unique_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in sorted({method for method in value if value.count(method) > 1}):
            raise ValueError(f"method '{method}' is named twice")
        return value

    @field_validator("methods")
    @classmethod
    def _data_to_train_on(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and "data" in info.data and info.data["data"] is None:
            raise ValueError(
                f"{' and '.join(value)} train on a dataset, and none is named; write data: {{dataset: …}}, or "
                "methods: [] to measure the model alone"
            )
        return value

    @model_validator(mode="after")
    def _adapter_or_lora(self) -> Recipe:
        if self.model.adapter and self.train.lora and self.methods:
            raise ValueError(
                "model.adapter and train.lora: the new adapter would not work without the old one; merge the old one "
                "into its model first, or train all weights with train.lora=null"
            )
        return self

    @model_validator(mode="after")
    def _servers_suffice(self) -> Recipe:
        prompt, engines = self.prompt, {"distill": self.distill.engine, "evaluate": self.evaluate.engine}
        for section, engine in engines.items():
            if not isinstance(engine, OpenAISettings):
                continue
            if engine.endpoint == "chat" and prompt.style == "verbatim":
                raise ValueError(f"{section}.engine.endpoint: verbatim prompts are text; set it to auto or completions")
            if engine.wants_text(prompt.style):
                continue
            way_out = f"leave it out, or set {section}.engine.endpoint=completions"
            if prompt.max_prompt_tokens:
                raise ValueError(f"prompt.max_prompt_tokens: a server that takes turns counts tokens itself; {way_out}")
            if prompt.thinking in ("always", "never"):
                raise ValueError(f"prompt.thinking: a server that takes turns decides that by itself; {way_out}")
            if prompt.reply_prefix and section == "distill":
                raise ValueError(f"prompt.reply_prefix: a server that takes turns begins replies itself; {way_out}")
        served = self.evaluate.engine
        if isinstance(served, OpenAISettings) and self.evaluate.benchmarks:
            unnamed = [method for method in self.methods if method not in served.models]
            if unnamed:
                raise ValueError(
                    f"evaluate.engine.models: what does the server call the tuned models {', '.join(unnamed)}? Serve "
                    "them and write models: {sft: NAME, sdft: NAME}; or evaluate with the engine transformers"
                )
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if "/" in value or value.startswith("."):
            raise ValueError("a run's name has no slash and no leading dot; use output_dir for the place")
        return value

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.name


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML file or a mapping, with `key=value` overrides in dotted form.

    A file goes by its path or, in `recipes/` and among those shipped, by its bare name, such as `reference/gsm8k`.
    `extends: base.yaml`, or a list, puts the recipe on top of others: paths relative to the recipe's own file, or the
    names of shipped ones. Later ones win, mappings are merged and lists replaced. A section with another `name` is
    another thing and replaced as a whole; a base's own run name is left out.

    Raises RecipeError with all problems found, each with its key and, for a misspelt one, the likely key.
    """
    problems: list[str] = []
    if isinstance(source, Mapping):
        where = "recipe"
        tree, places = _extended(_copy(source), {}, ())
    else:
        path = recipe_file(source)
        where = str(path)
        tree, places = _extended(*_read_yaml(path), (path,))
        tree.setdefault("name", path.stem)
    for override in overrides:
        problem = _apply_override(tree, override)
        if problem:
            problems.append(problem)
    if not tree.get("name") and isinstance(source, Mapping):
        tree["name"] = "run"
    _expand_names(tree)
    recipe, found, mended = _validated(tree)
    problems += [*found, *_prompt_problems(mended)]
    if problems or recipe is None:
        problems = [problem + _place_of(problem, places, overrides) for problem in problems]
        raise RecipeError.of(where, problems, _sound_sections(mended))
    return recipe


def _validated(tree: dict[str, Any]) -> tuple[Recipe | None, list[str], dict[str, Any]]:
    """The recipe, or what is wrong with it; and the tree without what is wrong.

    A wrong value keeps pydantic from looking at what depends on it, so it is taken out and the rest looked at again.
    """
    problems: list[str] = []
    mended, gone = _copy(tree), dict[tuple[Any, ...], list[int]]()
    while True:
        try:
            recipe = Recipe.model_validate_json(to_json(mended), strict=True)  # strict: "5" is no number
            return (None if problems else recipe), problems, mended
        except ValidationError as error:
            items = error.errors()
        for item in items:
            problem = explain({**item, "loc": _as_first_numbered(item["loc"], gone)})
            if problem not in problems:
                problems.append(problem)
        wrong = [list(_as_written(list(item["loc"]))) for item in items if item["type"] != "missing"]
        taken = [_take_out(mended, loc, gone) for loc in sorted(wrong, key=_last_first)]
        if not any(taken):
            return None, problems, mended


def _last_first(loc: list[Any]) -> list[tuple[int, str]]:
    """Sorts the later items of a list to the front: taking one out moves those behind it."""
    return [(-part, "") if isinstance(part, int) else (0, str(part)) for part in loc]


def _take_out(tree: Any, loc: list[Any], gone: dict[tuple[Any, ...], list[int]]) -> bool:
    """Delete what stands at a path; for an item of a list, remember its number."""
    node = tree
    for part in loc[:-1]:
        known = part < len(node) if isinstance(node, list) and isinstance(part, int) else part in node
        if not isinstance(node, dict | list) or not known:
            return False
        node = node[part]
    last = loc[-1] if loc else None
    if isinstance(node, dict) and last in node:
        del node[last]
        return True
    if isinstance(node, list) and isinstance(last, int) and last < len(node):
        gone.setdefault(tuple(loc[:-1]), []).append(_first_number(last, gone.get(tuple(loc[:-1]), [])))
        del node[last]
        return True
    return False


def _first_number(index: int, gone: list[int]) -> int:
    """An item's number in the list before some were taken out."""
    for number in sorted(gone):
        index += number <= index
    return index


def _as_first_numbered(loc: tuple[Any, ...], gone: Mapping[tuple[Any, ...], list[int]]) -> tuple[Any, ...]:
    """A path with the numbers that items of lists had at first."""
    out = list(loc)
    for place, part in enumerate(loc):
        before = gone.get(tuple(_as_written(list(loc[:place]))))
        if isinstance(part, int) and before:
            out[place] = _first_number(part, before)
    return tuple(out)


def recipe_file(source: str | Path) -> Path:
    """The file that a path or a bare name means: from here, from `recipes/` here, or shipped; else the path itself."""
    for folder in (Path(), Path("recipes"), SHIPPED):
        for name in (source, f"{source}.yaml"):
            if (folder / name).is_file():
                return folder / name
    return Path(source)


# Recipes that extend others


def _extended(
    tree: dict[str, Any], own: dict[str, Place], chain: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[str, Place]]:
    """A recipe on top of those that it extends, and by dotted key the place where each key of the whole stands.

    `own` are the places of the recipe's own keys, `chain` the files that led here, this recipe's own last.
    """
    bases = tree.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    way = " → ".join(str(path) for path in chain) or "recipe"
    at = own["extends"].quoted() if "extends" in own else ""
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise RecipeError(f"{way}: extends: the path of a recipe, or a list of them, not {bases!r}{at}")
    _expand_names(tree)
    merged: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for base in bases:
        beside = Path(os.path.normpath((chain[-1].parent if chain else Path()) / base))
        path = beside if beside.is_file() else recipe_file(base)
        if path.resolve() in {before.resolve() for before in chain}:
            raise RecipeError(f"{way} → {path}: recipes extend one another in a circle; take one `extends` out{at}")
        if not path.is_file():
            raise RecipeError(f"{way} → {beside}: there is no such recipe to extend{at}")
        below, given = _extended(*_read_yaml(path), (*chain, path))
        below.pop("name", None)
        merged = _merged(merged, below)
        places = _placed(places, given, below)
    return _merged(merged, tree), _placed(places, own, tree)


def _placed(below: dict[str, Place], above: dict[str, Place], tree: dict[str, Any]) -> dict[str, Place]:
    """The places of two recipes as one; what `tree`, the upper one, replaces has none below."""
    leaves = tuple(f"{key}." for key in _leaves(tree))
    return {key: place for key, place in below.items() if not f"{key}.".startswith(leaves)} | above


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one, the second on top."""
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merged(under, value) if value.get("name", under.get("name")) == under.get("name") else value
        out[key] = value
    return out


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values that are no mapping."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _place_of(problem: str, places: Mapping[str, Place], overrides: Iterable[str]) -> str:
    """Where the key of a problem stands, quoted; empty for what came from elsewhere, such as the command line."""
    key, _, message = problem.partition(": ")
    inner = message.partition(": ")[0]  # a section's own validator names a key of it: `distill: candidates: …`
    if any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides):
        return ""
    parts = key.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    found = next((places[name] for name in [f"{key}.{inner}", *prefixes] if name in places), None)
    return found.quoted() if found else ""


def _sound_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Those sections of a faulty recipe that are in order by themselves."""
    sections: tuple[tuple[str, type[Settings]], ...] = (
        ("model", ModelConfig),
        ("data", DataConfig),
        ("distill", DistillConfig),
        ("evaluate", EvaluateConfig),
    )
    sound = {}
    for key, kind in sections:
        try:
            sound[key] = kind.model_validate_json(to_json(tree[key]), strict=True)
        except (KeyError, ValidationError):  # not given, or named among the problems already
            continue
    return sound


def _prompt_problems(tree: Mapping[str, Any]) -> list[str]:
    """What is wrong with the recipe's templates, also where other sections are wrong."""
    evaluate = tree.get("evaluate")
    benchmarks = evaluate.get("benchmarks") if isinstance(evaluate, dict) else None
    others = {
        f"evaluate.benchmarks.{index}.template": benchmark["template"]
        for index, benchmark in enumerate(benchmarks if isinstance(benchmarks, list) else [])
        if isinstance(benchmark, dict) and isinstance(benchmark.get("template"), str)
    }
    try:
        return prompt_problems(PromptConfig.model_validate(tree.get("prompt", {})), others)
    except ValidationError:
        return []  # its keys and types have been named already


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    tree = recipe.model_dump(mode="json")
    text: str = yaml.dump(tree, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _expand_names(tree: dict[str, Any]) -> None:
    """Write a plain string out where settings with a name are wanted, alone or in a list."""
    for *parents, last in NAMED:
        node: Any = tree
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            value = node[last]
            node[last] = [named(item) for item in value] if isinstance(value, list) else named(value)


_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is built


class _Loader(_Base):  # type: ignore[valid-type, misc]
    """Safe YAML in which `1e-4` is a number (YAML 1.1 wants `1.0e-4`) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if any(key == other and type(key) is type(other) for other in keys):  # 1 and true are equal
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            keys.append(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a recipe file. Lines and columns are counted from 1."""

    path: Path
    line: int
    column: int
    text: str
    """The line."""

    def quoted(self) -> str:
        """` (mine.yaml:4:9)`, and below it the line with a mark under the column."""
        start = max(0, self.column - 1 - QUOTED // 2)
        shown = self.text[start : start + QUOTED].rstrip()
        return f" ({self.path}:{self.line}:{self.column})\n      {shown}\n      {' ' * (self.column - 1 - start)}^"


QUOTED = 70
"""Characters of a line that are quoted."""


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, Place]]:
    """A recipe file, and by dotted key where each of its keys and list items stands."""
    lines: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            tree = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `sdft list recipes` shows those that come with sdft") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where, quoted = (f":{mark.line + 1}:{mark.column + 1}", _at(path, mark, lines).quoted()) if mark else ("", "")
        quote = quoted.partition("\n")[1] + quoted.partition("\n")[2]
        raise RecipeError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}){quote}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys such as `model:` and `data:`")
    try:
        return tree, {key: _at(path, mark, lines) for key, mark in _marks(node)}
    except RecursionError:
        raise RecipeError(f"{path}: an alias (*name) stands within what it is an alias of") from None


def _at(path: Path, mark: Any, lines: Sequence[str]) -> Place:
    return Place(path, mark.line + 1, mark.column + 1, lines[mark.line] if mark.line < len(lines) else "")


def _marks(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key → mark: of the key in a mapping, of the item in a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark
            yield from _marks(value, f"{prefix}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", value.start_mark
            yield from _marks(value, f"{prefix}{index}.")


def _apply_override(tree: dict[str, Any], override: str) -> str | None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        return f"'{override}': an override has the form key=value, such as train.epochs=1"
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        return f"'{override}': the value is not valid YAML ({getattr(error, 'problem', error)})"
    *parents, last = key.split(".")
    if not all([*parents, last]):
        return f"'{override}': a key has no empty parts; write it as in train.epochs=1"
    node: Any = tree
    for part in parents:
        child = node.get(part)
        if isinstance(child, str):
            child = {"name": child}
        elif child is None:
            child = {}
        elif not isinstance(child, dict):
            return f"'{override}': '{part}' is a {type(child).__name__} and has no keys; replace it as a whole"
        node[part] = child
        node = child
    node[last] = value
    return None


def explain(item: Any) -> str:
    """One pydantic error as `key: what is wrong`, with a suggestion for misspelt keys and names."""
    loc, kind = list(item["loc"]), item["type"]
    model = _model_at(Recipe, loc[:-1])
    key = ".".join(str(part) for part in _as_written(loc))
    if kind == "extra_forbidden":
        options = list(model.model_fields) if model else []
        return f"{key}: unknown key{did_you_mean(str(loc[-1]), options)}"
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "union_tag_invalid":
        context = item["ctx"]
        names = [name.strip(" '") for name in context["expected_tags"].split(",")]
        return f"{key}: no '{context['tag']}'{did_you_mean(context['tag'], names)}"
    if kind == "literal_error":
        names = [name.strip(" '") for name in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{key}: {item['input']!r} is none of {', '.join(names)}{did_you_mean(str(item['input']), names)}"
    if kind == "value_error":
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    message = item["msg"][0].lower() + item["msg"][1:]
    shown = repr(item["input"])
    return f"{key}: {message}, not {shown if len(shown) < 60 else type(item['input']).__name__}"


def _as_written(loc: list[Any]) -> Iterator[Any]:
    """A path without what pydantic adds to it: a union's tag stands behind a list's index or `engine`."""
    for index, part in enumerate(loc):
        tag = index > 0 and (isinstance(loc[index - 1], int) or loc[index - 1] == "engine")
        if not tag and not (isinstance(part, str) and part[:1].isupper()):
            yield part


def _model_at(model: type[BaseModel], loc: list[Any]) -> type[BaseModel] | None:
    """The settings class at a path such as ("evaluate", "benchmarks", 0, "gsm8k")."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field: FieldInfo | None = current.model_fields.get(str(part))
            if field is None:
                return None
            current = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        else:
            members = list(_members(current))
            if isinstance(part, int):
                continue  # an index into a tuple: its members are what `current` yields
            tagged = (
                [m for m in members if part in typing.get_args(m.model_fields["name"].annotation)]
                if all("name" in m.model_fields for m in members)
                else []
            )
            holders = tagged or [m for m in members if part in m.model_fields]
            if not holders:
                return None
            current = holders[0]
            if not tagged:
                field = current.model_fields[str(part)]
                current = field.annotation
    found = list(_members(current))
    return found[0] if len(found) == 1 else None


def _members(annotation: Any) -> Iterable[type[BaseModel]]:
    """All settings classes inside an annotation: unions, tuples, Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType, tuple, Annotated):
        for part in typing.get_args(annotation):
            yield from _members(part)
