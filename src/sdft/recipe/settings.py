"""A recipe's sections as typed settings: what each key means, its default, and what fits with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sdft.benchmarks import AnyBenchmark
from sdft.checks import AnyCheck, Leak
from sdft.data.config import DataConfig
from sdft.engines import AnyEngine, OpenAISettings, Sampling, TransformersSettings
from sdft.models import ModelConfig
from sdft.prompts import PromptConfig
from sdft.records import Settings


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
        names = [benchmark.called for benchmark in value]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"'{name}' stands twice; give one of them another `label`")
        return value

    @model_validator(mode="after")
    def _decoding_suits(self) -> EvaluateConfig:
        found = [f"'{b.called}': {why}" for b in self.benchmarks for why in b.conflicts(b.sampling or self.sampling)]
        if found:
            raise ValueError(f"benchmarks: {'; '.join(found)}")
        return self


class AnalyzeConfig(Settings):
    """What is measured beside the benchmarks, for the report."""

    nll: bool = True
    """How unlikely the seed and each tuned model find the original and the distilled replies."""
    similarity: bool | None = None
    """How like each tuned model's replies are to the seed's: embeddings, BLEU-4, ROUGE-L. None: what can be had here
    (all but embeddings come with `pip install -e '.[eval]'`); true: missing packages are an error."""
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
