"""Next tokens from logits: many rows at once, each with its own seed."""

from __future__ import annotations

import random

import torch

from sdft.engines.base import Sampling

WINDOW = 1024
"""Likeliest tokens looked at first where only `top_p` limits them."""


def next_tokens(logits: torch.Tensor, sampling: Sampling, draws: list[random.Random]) -> list[int]:
    """One token id for each row of `logits`, (rows, vocabulary), in any float dtype.

    Temperature, then `top_k`, then `top_p`, as transformers applies them. Each row's choice uses one uniform
    number from its own generator, so it does not depend on the rows beside it.
    """
    if sampling.temperature == 0:
        return logits.max(-1).indices.tolist()  # twice as fast as argmax on a CPU
    vocabulary = logits.shape[-1]
    scaled = logits.float() / sampling.temperature
    uniform = torch.tensor([draw.random() for draw in draws], dtype=torch.float64, device=logits.device)
    size = min(sampling.top_k or WINDOW, vocabulary)
    values, ids = scaled.topk(size, dim=-1)
    whole = values if sampling.top_k else scaled
    probs = (values.double() - whole.double().logsumexp(-1, keepdim=True)).exp()
    if not sampling.top_k and size < vocabulary and bool((probs.sum(-1) < sampling.top_p).any()):
        values, ids = scaled.sort(dim=-1, descending=True)
        probs = values.double().softmax(-1)
    cumulative = probs.cumsum(-1)
    kept = (cumulative - probs < sampling.top_p).to(probs.dtype)
    kept[:, 0] = 1
    probs = probs * kept
    cumulative = probs.cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    choice = (cumulative <= target).sum(-1, keepdim=True).clamp(max=ids.shape[-1] - 1)
    choice = torch.minimum(choice, (kept.sum(-1, keepdim=True) - 1).long())
    return ids.gather(-1, choice)[:, 0].tolist()
