"""How alike two replies are: by meaning, by runs of words, and by the longest common subsequence of words.

    The answer is -37.   /   The answer is -36.      similarity 0.91   bleu4 0.43   rouge_l 0.75
    The answer is -37.   /   -37                     similarity 0.77   bleu4 0.02   rouge_l 0.40

Equal texts are 1 in each. `bleu4_characters` and `rouge_l_tokens` are what the reference calls BLEU-4 and ROUGE-L: runs
of letters, spaces and signs, not of words, and a subsequence of words and signs. In the examples they are 0.89 and
0.83, 0.01 and 0.50.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any

from sdft.errors import ModelError
from sdft.models import ModelConfig, pick_device, quiet_loading, resolve

METRICS = ("similarity", "bleu4", "rouge_l", "bleu4_characters", "rouge_l_tokens")
PACKAGES = {
    "bleu4": "sacrebleu", "rouge_l": "rouge_score", "bleu4_characters": "nltk", "rouge_l_tokens": "rouge_score"
}  # fmt: skip
"""Metric → the optional package that computes it."""
INSTALL = "pip install -e '.[eval]' where sdft was cloned"
LONGEST = 256
"""Tokens of a text that are embedded, as all-MiniLM-L6-v2 was made for."""

TextMetric = Callable[[str, str], float]
"""(seed's reply, tuned model's reply) → 0 to 1."""


def missing_packages() -> dict[str, str]:
    """Metric → what to do, for those whose package is not installed."""
    return {
        metric: f"the package {package.replace('_', '-')} is not installed: {INSTALL}"
        for metric, package in PACKAGES.items()
        if importlib.util.find_spec(package) is None
    }


def text_metrics() -> dict[str, TextMetric]:
    """The metrics that need no encoder, as far as their packages are installed."""
    makers: dict[str, Callable[[], TextMetric]] = {
        "bleu4": _bleu4,
        "rouge_l": lambda: _rouge_l(_Words()),
        "bleu4_characters": _bleu4_characters,
        "rouge_l_tokens": lambda: _rouge_l(_Tokens()),
    }
    missing = missing_packages()
    return {name: make() for name, make in makers.items() if name not in missing}


def _bleu4() -> TextMetric:
    """Sentence BLEU with up to 4 words in a row, of as many orders as the reply has words for."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(effective_order=True)

    def bleu4(seed: str, reply: str) -> float:
        return min(1.0, float(metric.sentence_score(reply, [seed]).score) / 100)

    return bleu4


def _bleu4_characters() -> TextMetric:
    """Sentence BLEU with up to 4 characters in a row; an order without a match counts half of the one before it."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method3

    def bleu4_characters(seed: str, reply: str) -> float:
        return float(sentence_bleu([list(seed)], list(reply), smoothing_function=smooth))

    return bleu4_characters


class _Words:
    """Words of any script; rouge-score's own tokenizer knows a to z alone."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


class _Tokens:
    """What jieba makes of English text, and rouge_chinese of that: words, numbers and signs; a blank line is one, too.

    rouge_chinese breaks lines after a question mark, so that one at the end of a line is followed by a blank line.
    Of Chinese, whose words jieba knows, each sign is a token here.
    """

    TOKEN = re.compile(r"\n(?=[^\S\n]*\n)|[Cc](?:\+\+|#)|AT&T|[a-zA-Z0-9]+(?:\.\d+)?%?|[#&+._%-]+|\S")
    BREAK = re.compile(r"[?？！。]")

    def tokenize(self, text: str) -> list[str]:
        return self.TOKEN.findall(self.BREAK.sub(r"\g<0>\n", text.rstrip()).rstrip())


def _rouge_l(tokenizer: _Words | _Tokens) -> TextMetric:
    """F-measure of the longest common subsequence of what the tokenizer finds."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer(["rougeL"], tokenizer=tokenizer)

    def rouge_l(seed: str, reply: str) -> float:
        return float(scorer.score(seed, reply)["rougeL"].fmeasure)

    return rouge_l


class Embedder:
    """A sentence encoder: the mean of the last hidden states over a text's tokens, scaled to length 1."""

    def __init__(self, name: str, device: str = "auto") -> None:
        """Load it. Raises ModelError where it cannot be had or is no plain encoder."""
        from transformers import AutoModel, AutoTokenizer

        folder = resolve(ModelConfig(name=name))
        self.device = pick_device(device)
        quiet_loading()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.model: Any = AutoModel.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{folder}: the encoder cannot be loaded ({str(error).splitlines()[0]})") from None
        self.model = self.model.to(self.device).eval().requires_grad_(False)

    def likeness(self, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> list[float]:
        """The cosine between the embeddings of each pair's texts."""
        import torch

        texts = sorted({text for pair in pairs for text in pair}, key=len)  # of like length side by side: less padding
        vectors: dict[str, torch.Tensor] = {}
        for start in range(0, len(texts), batch_size):
            some = texts[start : start + batch_size]
            inputs = self.tokenizer(
                some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            ).to(self.device)  # fmt: skip
            states = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            means = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            vectors |= zip(some, torch.nn.functional.normalize(means, dim=-1).cpu(), strict=True)
        return [min(1.0, float(vectors[one] @ vectors[other])) for one, other in pairs]
