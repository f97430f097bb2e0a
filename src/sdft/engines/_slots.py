"""A KV cache of slots: each sequence owns one row of it, starts at position 0, and leaves when it is done.

No left padding, no concatenation, no copy of repeated heads. What a row computes does not depend on which rows
stand beside it, so a reply is the same whatever it was batched with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdft_slots"
BLOCK = 64
"""Lengths are rounded up to whole blocks, so that few different shapes occur."""


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA in which one decoded token's query heads of a group are taken as query positions.

    query: (rows, heads, 1, d); key, value: (rows, kv heads, length, d). Grouped heads then need no copy of the
    keys and values. Longer queries go to transformers' own function.
    """
    rows, heads, positions, width = query.shape
    if positions != 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling")
    )
    return out.reshape(rows, 1, heads, width), None


AttentionInterface.register(ATTENTION, slot_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class SlotCache(Cache):
    """Keys and values of every layer, each of shape (slots, kv heads, capacity, head size)."""

    def __init__(self, config: PreTrainedConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = (slots, heads, 0, width)
        self.keys = [torch.empty(self._shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty_like(key) for key in self.keys]
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self._rows = torch.arange(slots, device=device)
        self._slots: list[int] = []
        self._start = 0
        self._view = 0
        self._prefix: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def capacity(self) -> int:
        """Tokens that a slot can hold before it grows."""
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Grow so that a slot holds at least `length` tokens."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, self.capacity * 5 // 4) // BLOCK) * BLOCK
        for tensors in (self.keys, self.values):
            for index, old in enumerate(tensors):
                new = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
                new[:, :, : old.shape[2]] = old
                tensors[index] = new

    def keep_prefix(self, length: int) -> None:
        """Keep the first tokens of slot 0 as the prefix that later prompts share; 0 forgets it."""
        pairs = zip(self.keys, self.values, strict=True)
        self._prefix = [(k[0, :, :length].clone(), v[0, :, :length].clone()) for k, v in pairs] if length else []

    def begin_prefill(self, slots: list[int], width: int, start: int = 0) -> torch.Tensor | None:
        """The next pass brings `width` prompt tokens for each of these slots, padded on the right.

        `start` tokens of each slot come from the kept prefix. Returns the mask, bool of shape (1, 1, width,
        start + width), or None for a plain causal one.
        """
        self._slots, self._start = slots, start
        if not start:
            return None
        for (prefix_key, prefix_value), key, value in zip(self._prefix, self.keys, self.values, strict=True):
            key[slots, :, :start] = prefix_key
            value[slots, :, :start] = prefix_value
        device = self.lengths.device
        seen = (
            torch.arange(start + width, device=device)[None]
            <= torch.arange(start, start + width, device=device)[:, None]
        )
        return seen[None, None]

    def begin_decode(self, rows: int, longest: int) -> torch.Tensor:
        """The next pass brings one token for each of the first `rows` slots; returns its mask.

        The mask is bool of shape (rows, 1, 1, keys) and lets each row see its own tokens, the new one included.
        """
        self._slots = []
        self._view = min(-(-longest // BLOCK) * BLOCK, self.capacity)
        seen = torch.arange(self._view, device=self.lengths.device)[None] <= self.lengths[:rows, None]
        return seen[:, None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values, and return those to attend to."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        rows, _, positions, _ = key_states.shape
        if self._slots:
            end = self._start + positions
            keys[self._slots, :, self._start : end] = key_states
            values[self._slots, :, self._start : end] = value_states
            if not self._start:
                return key_states, value_states
            return keys[self._slots, :, :end], values[self._slots, :, :end]
        index, at = self._rows[:rows], self.lengths[:rows]
        keys[index, :, at] = key_states[:, :, 0]
        values[index, :, at] = value_states[:, :, 0]
        return keys[:rows, :, : self._view], values[:rows, :, : self._view]

    def move(self, source: int, target: int) -> None:
        """Move a sequence to another slot."""
        length = int(self.lengths[source])
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target, :, :length] = tensor[source, :, :length]
        self.lengths[target] = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unused: positions and masks are passed in."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Sizes for a prefill mask: a prompt attends to itself alone."""
        return query_length, 0
