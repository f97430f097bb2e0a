"""The benchmark `drift`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING, ClassVar, Literal

import yaml

from sdft.benchmarks.base import Benchmark
from sdft.checks import PASS
from sdft.engines import Sampling
from sdft.errors import BenchmarkError
from sdft.records import Example, Message, Metric, Verdict

if TYPE_CHECKING:
    import torch


class Drift(Benchmark):
    """`Describe a lighthouse at dusk in three sentences.` and 63 more prompts that no task is about.

    How far fine-tuning moved the model where it should not have: general_prompts.yaml, spread evenly over writing,
    facts, code, maths, advice, translation, harmless-but-touchy and harmful requests. There are no right answers.

    - `kl`: mean over the tokens of the seed model's own reply of KL(seed || tuned) between the two next-token
      distributions, in nats; then the mean over prompts.
    - `same_argmax`: the share of those tokens where both models like the same token best; mean over prompts.
    - `reply_words`: words in the model's own reply.

    `judge` sees one model's reply, so it gives `reply_words` alone; the other two come from `divergence`.
    """

    METRICS: ClassVar[dict[str, Metric]] = {
        "kl": Metric(kind="mean", better="lower", percent=False),
        "same_argmax": Metric(kind="mean"),
        "reply_words": Metric(kind="mean", better="neither", percent=False),
    }
    ROLE: ClassVar[Literal["task", "retention"]] = "retention"
    TEMPLATES: ClassVar[dict[str, str]] = {"chat": "plain", "verbatim": "alpaca"}

    name: Literal["drift"] = "drift"
    sampling: Sampling | None = Sampling(max_new_tokens=128)
    """Decoding; null: the recipe's `evaluate.sampling`."""

    def examples(self) -> list[Example]:
        """The prompts, category by turns, so that `limit` keeps them spread; `reference` is empty."""
        return list(_prompts()[: self.limit])

    def judge(self, example: Example, reply: str) -> tuple[Verdict, dict[str, float]]:
        """Always passes; `reply_words` alone."""
        return PASS, {"reply_words": float(len(reply.split()))}

    def groups(self, example: Example) -> str | None:
        """The prompt's category."""
        return str(example.meta["category"])


@functools.cache
def _prompts() -> tuple[Example, ...]:
    text = resources.files("sdft.benchmarks").joinpath("general_prompts.yaml").read_text(encoding="utf-8")
    by_category = [
        [
            Example(
                id=f"{category}-{number}",
                messages=(Message(role="user", content=prompt),),
                reference="",
                meta={"category": category},
            )
            for number, prompt in enumerate(prompts, 1)
        ]
        for category, prompts in yaml.safe_load(text).items()
    ]
    return tuple(example for turn in zip(*by_category, strict=True) for example in turn)


def divergence(
    seed_logprobs: Iterator[torch.Tensor], tuned_logprobs: Iterator[torch.Tensor]
) -> Iterator[tuple[float, float]]:
    """Yield `kl` and `same_argmax` for each prompt.

    Both iterators give, for the same replies in the same order, natural-log probabilities, float32 of shape
    (reply tokens, vocabulary). A reply of no tokens cannot drift: (0, 1). Raises BenchmarkError where two shapes
    differ: then the models do not share a tokenizer.
    """
    for seed, tuned in zip(seed_logprobs, tuned_logprobs, strict=True):
        if seed.shape != tuned.shape:
            raise BenchmarkError(
                f"drift: seed and tuned model give distributions of shape {tuple(seed.shape)} and "
                f"{tuple(tuned.shape)}; they can be compared only where they share a tokenizer"
            )
        if not len(seed):
            yield 0.0, 1.0
            continue
        # A token that the seed rules out adds nothing, but 0 * -inf is no number.
        terms = (seed.exp() * (seed - tuned)).masked_fill(seed == float("-inf"), 0.0)
        kl = terms.sum(dim=-1).mean().item()
        same = (seed.argmax(dim=-1) == tuned.argmax(dim=-1)).float().mean().item()
        yield max(0.0, kl), same  # rounding can put the KL of equal models a little below 0
