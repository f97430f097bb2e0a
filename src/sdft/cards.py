"""Model and dataset cards: what a run's result was made from, how, how good it is, and what is not known."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from sdft.errors import ModelError
from sdft.models import ModelConfig, hub_errors, resolve
from sdft.recipe import METHODS, Method, Recipe
from sdft.rundir import file_sha256, read_json
from sdft.scoreboard import score_rows

Form = Literal["adapter", "model", "gguf"]
SAFETY = {"advbench", "xstest"}
PAPER = "[Self-Distillation Fine-Tuning](https://arxiv.org/abs/2402.13669)"
UNKNOWN = "not known here: look it up before you pass this on"
FORMS: Mapping[Form, str] = {
    "adapter": "a PEFT adapter; it works on top of the base model alone",
    "model": "a whole model, as safetensors; transformers and vLLM load it",
    "gguf": "a GGUF file, for llama.cpp and what is built on it",
}


def model_card(recipe: Recipe, run: Path, method: Method, form: Form, licence: str | None) -> str:
    """The README.md of an exported model, with the hub's front matter. `licence` is the result's own, where named."""
    base, base_licence = recipe.model.name, licence_of(recipe.model)
    assert recipe.data is not None
    front: dict[str, Any] = {"tags": list(dict.fromkeys(["sdft", method])), "pipeline_tag": "text-generation"}
    front["library_name"] = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}[form]
    if is_hub_name(base):
        front["base_model"] = base
    if is_hub_name(recipe.data.dataset):
        front["datasets"] = [recipe.data.dataset]
    if licence or base_licence:
        front["license"] = licence or base_licence
    told = METHODS[method].replace("fine-tune", "fine-tuned")
    facts = read_json(run / f"train/{method}/training.json")
    manifest = read_json(run / "manifest.json")
    return (
        _front(front)
        + f"""
# {recipe.name}, {method}

{shown(base)}, {told}: {PAPER} with sdft {manifest["sdft"]}. This is {FORMS[form]}.

| | |
|---|---|
| base model | {shown(base)}{_revision(recipe, manifest)} |
| dataset | {shown(recipe.data.dataset)}, {facts["rows"]} rows |
| data, sha256 | `{_data_hash(run, manifest)}` |
| learnt from, sha256 | `{facts["data_sha256"]}` |
| trained for | {facts["steps"]} steps, {facts["supervised_tokens"]} supervised tokens a pass |
| seed of the run | {recipe.seed} |

## Scores

{_scores(recipe, run)}

## Use

{_usage(recipe, form, method)}

## Intended use and limits

Made for tasks like those of {shown(recipe.data.dataset)}, in that dataset's language and form. {_limits(recipe)}
It has the base model's limits, too: it can be wrong, and it can repeat what is biased or false. Do not let it decide
over people, and try it on your own data before you rely on it.

## Settings

```yaml
{settings(recipe)}```

## Licences

- base model ({shown(base)}): {base_licence or UNKNOWN}
- dataset ({shown(recipe.data.dataset)}): {UNKNOWN}
- this model: {licence or "that of the base model, as far as that of the dataset allows it"}
"""
    )


def dataset_card(recipe: Recipe, run: Path, licence: str | None) -> str:
    """The README.md of an exported distilled dataset."""
    assert recipe.data is not None
    summary, manifest = read_json(run / "select/summary.json"), read_json(run / "manifest.json")
    base, source = recipe.model.name, recipe.data.dataset
    front: dict[str, Any] = {
        "tags": ["sdft", "synthetic"],
        "task_categories": ["text-generation"],
        "configs": [
            {"config_name": "messages", "data_files": "train.jsonl", "default": True},
            {"config_name": "rows", "data_files": "rows.jsonl"},
        ],
    }
    if is_hub_name(source):
        front["source_datasets"] = [source]
    if licence:
        front["license"] = licence
    reasons = "\n".join(f"| {reason} | {count} |" for reason, count in summary["reasons"].items())
    words = summary["length"]
    return (
        _front(front)
        + f"""
# {recipe.name}: {shown(source)}, distilled

The prompts of {shown(source)} with replies that {shown(base)} rewrote in its own words, shown the original reply:
{PAPER} with sdft {manifest["sdft"]}. A rewrite that fails a check is left out, and the original reply stands.

| | |
|---|---|
| rows | {summary["examples"]} |
| of them rewritten | {summary["rewritten"]} ({summary["share_rewritten"]:.0%}) |
| words in a reply | {words["original"]["mean_words"]:.1f} before, {words["chosen"]["mean_words"]:.1f} after (mean) |
| checks | {", ".join(check.name for check in recipe.select.checks)} |
| source, sha256 | `{_data_hash(run, manifest)}` |
| this, sha256 | `{file_sha256(run / "select/distilled.messages.jsonl")}` |

`train.jsonl` holds conversations: `messages`, a list of `role` and `content`, the reply last. `rows.jsonl` holds the
same in the columns of the source.

## What became of each row

| verdict on its last rewrite | rows |
|---|---|
{reasons}

## Intended use and limits

For fine-tuning {shown(base)}, or a model that speaks like it: the replies are near to what that model would say, and
are of less use to others. They were written by a model; the checks see what they are made for, no more: a rewrite can
be wrong and pass. Rows that kept their original are the harder ones.

## Settings

```yaml
{settings(recipe, ("model", "data", "prompt", "distill", "select", "seed"))}```

## Licences

- source ({shown(source)}): {UNKNOWN}
- model that wrote the rewrites ({shown(base)}): {licence_of(recipe.model) or UNKNOWN}; some licences bind what may be
  done with a model's output
- this dataset: {licence or "that of the source, as far as that of the model allows it"}
"""
    )


def _front(fields: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(fields), sort_keys=True, allow_unicode=True)}---\n"


def is_hub_name(name: str) -> bool:
    """Whether a name is one on the hub, as far as its form tells."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def shown(name: str) -> str:
    """A name for the public: of a local path the last part alone."""
    return name if is_hub_name(name) else Path(name).name


def licence_of(model: ModelConfig) -> str | None:
    """The licence that a model's own card names: beside its files, else on the hub; None where neither says."""
    try:
        card = resolve(model, weights=False) / "README.md"
        if card.is_file():
            front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
            named = (yaml.safe_load(front[1]) or {}).get("license") if front else None
            return named if isinstance(named, str) else None
    except (ModelError, OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not is_hub_name(model.name) or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return None
    from huggingface_hub import HfApi

    try:
        data: Any = HfApi().model_info(model.name, timeout=5).card_data
    except hub_errors():
        return None
    licence = getattr(data, "license", None)
    return licence if isinstance(licence, str) else None


def _revision(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    weights = manifest.get("weights") or {}
    told = [f"as {weights['source']}"] if weights.get("source") in ("gguf", "folder") else []
    told += [f"{key} `{weights[key]}`" for key in ("commit", "sha256") if weights.get(key)]
    told += [f"revision {recipe.model.revision}"] if recipe.model.revision else []
    return f" ({', '.join(told)})" if told else ""


def _data_hash(run: Path, manifest: Mapping[str, Any]) -> str:
    known: str | None = manifest.get("hashes", {}).get("data/train.jsonl")
    return known or file_sha256(run / "data/train.jsonl")


def _scores(recipe: Recipe, run: Path) -> str:
    models, rows = score_rows(recipe, run)
    if not rows:
        return "None were measured: what it is worth is not known."
    lines = ["| | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("\n", "<br>") for cell in row) + " |" for row in rows]
    told = "Value [95 % interval]; below it, the difference to the seed with its own. Shares are in percent."
    return "\n".join([told, "", *lines, "", "The intervals speak of the test rows, not of other seeds of training."])


def _limits(recipe: Recipe) -> str:
    measured = {benchmark.name for benchmark in recipe.evaluate.benchmarks}
    what = f"Measured on {', '.join(sorted(measured))} alone." if measured else "It was not measured."
    if not measured & SAFETY:
        what += " Whether it still refuses what the base model refuses was not measured."
    return what


def _usage(recipe: Recipe, form: Form, method: Method) -> str:
    if form == "gguf":
        return f"```\nllama-cli -m {recipe.name}-{method}.gguf\n```"
    if form == "model":
        load = 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    else:
        load = 'model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER")'
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    style = (
        "Prompts go through the chat template"
        if recipe.prompt.style == "chat"
        else (f"Prompts are written in the template `{recipe.prompt.train}` of sdft, not in a chat template")
    )
    return f"""```python
{imports}

{load}
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```

{style}."""


def settings(
    recipe: Recipe, sections: tuple[str, ...] = ("model", "data", "prompt", "distill", "select", "train", "seed")
) -> str:
    """The recipe's sections as YAML, without what is of this machine: paths, servers."""
    tree = recipe.model_dump(mode="json", exclude_none=True, include=set(sections))
    tree["model"]["name"] = shown(tree["model"]["name"])
    for section, key in (("data", "dataset"), ("model", "adapter")):
        if tree.get(section, {}).get(key):
            tree[section][key] = shown(tree[section][key])
    if "distill" in tree:
        tree["distill"]["engine"] = tree["distill"]["engine"]["name"]
    if "train" in tree:
        tree["train"].pop("report_to", None)
    text: str = yaml.safe_dump({key: tree[key] for key in sections if key in tree}, sort_keys=False, allow_unicode=True)
    return text
