"""A KV cache of slots: each sequence owns one row of it, starts at position 0, and leaves when it is done.

No padding, no concatenation, no copy of repeated heads. What a row computes does not depend on which rows stand
beside it, so a reply is the same whatever it was batched with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedConfig
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdft_slots"
NOWHERE = -1
"""The slot of a text that is passed through once and not kept."""
STEP = 64
"""Room for tokens grows by whole steps, so that few different shapes occur."""


class Span(NamedTuple):
    """One prompt's queries, and the keys that they look at, the last of which are their own."""

    first: int
    end: int
    first_key: int
    end_key: int


@dataclass(slots=True)
class Block:
    """Slots next to one another, with room for the longest of them.

    Small tensors without gaps: the products of a decode step would copy anything else.
    """

    keys: list[torch.Tensor]
    """Per layer: (slots, kv heads, head size, room)."""
    values: list[torch.Tensor]
    """Per layer: (slots, kv heads, room, head size)."""

    @property
    def room(self) -> int:
        """Tokens that each slot can hold."""
        return self.values[0].shape[2]

    def fit(self, length: int) -> None:
        """Make room for `length` tokens; give room back where much more is held."""
        room = -(-length // STEP) * STEP
        if self.room >= room and self.room - room < 2 * STEP:
            return
        kept = min(room, self.room)
        for index, (old_key, old_value) in enumerate(zip(self.keys, self.values, strict=True)):
            key = old_key.new_zeros((*old_key.shape[:3], room))  # what is never looked at must still be finite
            value = old_value.new_zeros((*old_value.shape[:2], room, old_value.shape[3]))
            key[..., :kept], value[:, :, :kept] = old_key[..., :kept], old_value[:, :, :kept]
            self.keys[index], self.values[index] = key, value


class SlotCache(Cache):
    """Keys and values of many sequences. Slot i is row i % block_rows of block i // block_rows."""

    def __init__(self, config: PreTrainedConfig, block_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.n_layers, self.block_rows, self.device, self.dtype = config.num_hidden_layers, block_rows, device, dtype
        self.blocks: list[Block] = []
        self._prefix: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._start = 0
        self._entering: list[tuple[int, Span]] = []
        self._lengths: list[int] = []
        self._at: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._bias: list[torch.Tensor] = []
        self._layer = 0

    def _block(self, index: int) -> Block:
        while len(self.blocks) <= index:
            size = (self.block_rows, self.heads)
            keys = torch.empty(*size, self.width, 0, dtype=self.dtype, device=self.device)
            values = torch.empty(*size, 0, self.width, dtype=self.dtype, device=self.device)
            self.blocks.append(Block([keys] * self.n_layers, [values] * self.n_layers))
        return self.blocks[index]

    def keep_prefix(self, length: int) -> None:
        """Keep the first tokens of slot 0 as the prefix that later prompts share; 0 forgets it."""
        self._prefix = []
        if length:
            pairs = zip(self.blocks[0].keys, self.blocks[0].values, strict=True)
            self._prefix = [(k[0, ..., :length].clone(), v[0, :, :length].clone()) for k, v in pairs]

    def begin_prefill(self, first_slot: int, lengths: list[int], start: int = 0) -> None:
        """The next pass brings prompts of so many tokens for the next slots, laid end to end in one row.

        `start` tokens of each slot come before them, from the kept prefix.
        """
        self._start, self._entering, self._lengths = start, [], []
        at = 0
        for number, length in enumerate(lengths):
            span = Span(at, at + length, at + number * start, at + length + (number + 1) * start)
            self._entering.append((first_slot + number, span))
            at += length
        for slot, span in self._entering:
            block, row = self._block(slot // self.block_rows), slot % self.block_rows
            if row == 0:
                block.fit(0)
            if block.room < start + span.end - span.first + 1:
                block.fit(start + span.end - span.first + 1)
            if start:
                for (prefix_key, prefix_value), key, value in zip(self._prefix, block.keys, block.values, strict=True):
                    key[row, ..., :start] = prefix_key
                    value[row, :, :start] = prefix_value

    def begin_scoring(self, lengths: list[int]) -> None:
        """The next pass brings texts of so many tokens, laid end to end in one row. Nothing of them is kept."""
        self._start, self._lengths, self._entering, at = 0, [], [], 0
        for length in lengths:
            self._entering.append((NOWHERE, Span(at, at + length, at, at + length)))
            at += length

    def begin_decode(self, lengths: list[int]) -> None:
        """The next pass brings one token for each of the first slots, which then hold that many tokens."""
        self._entering, self._lengths, self._at, self._bias = [], lengths, [], []
        size = self.block_rows
        del self.blocks[-(-len(lengths) // size) :]
        for index, block in enumerate(self.blocks):
            held = lengths[index * size : (index + 1) * size]
            block.fit(max(held))
            at = torch.tensor(held, device=self.device) - 1
            self._at.append((torch.arange(len(held), device=self.device), at))
            unseen = torch.arange(block.room, device=self.device)[None] > at[:, None]
            bias = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device)
            self._bias.append(bias.masked_fill_(unseen, float("-inf"))[:, None, None])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values, each (rows, kv heads, positions, head size); `attend` comes next."""
        self._layer = layer_idx
        for slot, (first, end, _, _) in self._entering:
            if slot == NOWHERE:
                continue
            block, row = self.blocks[slot // self.block_rows], slot % self.block_rows
            to = self._start + end - first
            block.keys[layer_idx][row, ..., self._start : to] = key_states[0, :, first:end].transpose(1, 2)
            block.values[layer_idx][row, :, self._start : to] = value_states[0, :, first:end]
        if self._lengths:
            size = self.block_rows
            for index, (rows, at) in enumerate(self._at):
                some = slice(index * size, index * size + len(at))
                self.blocks[index].keys[layer_idx][rows, :, :, at] = key_states[some, :, 0]
                self.blocks[index].values[layer_idx][rows, :, at] = value_states[some, :, 0]
        elif self._start:
            key, value = self._prefix[self._layer]
            parts = [span for _, span in self._entering]
            key_states = torch.cat([t for p in parts for t in (key.mT, key_states[0, :, p.first : p.end])], dim=1)[None]
            value_states = torch.cat([t for p in parts for t in (value, value_states[0, :, p.first : p.end])], dim=1)
            value_states = value_states[None]
        return key_states, value_states

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of the pass that was begun: (rows, heads, positions, d) → (rows, positions, heads, d)."""
        return self._attend_stored(query, scale) if self._lengths else self._attend_prompts(query, key, value, scale)

    def _attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Each prompt by itself, so that its shapes are its own."""
        out = query.new_zeros(query.shape)
        for _, (first, end, first_key, end_key) in self._entering:
            positions, keys = end - first, end_key - first_key
            seen = None
            if keys > positions:
                seen = torch.ones(positions, keys, dtype=torch.bool, device=query.device).tril(keys - positions)
            out[:, :, first:end] = functional.scaled_dot_product_attention(
                query[:, :, first:end].contiguous(),
                key[:, :, first_key:end_key].contiguous(),
                value[:, :, first_key:end_key].contiguous(),
                attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=True,
            )  # fmt: skip
        return out.transpose(1, 2)

    def _attend_stored(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """One token a row: the query heads of a group are the rows of one small product, and nothing is repeated."""
        rows, heads, _, width = query.shape
        grouped = query.reshape(rows * self.heads, -1, width)
        out = []
        for index, (block, bias) in enumerate(zip(self.blocks, self._bias, strict=True)):
            held = len(bias)
            first = index * self.block_rows * self.heads
            key, value = block.keys[self._layer][:held].flatten(0, 1), block.values[self._layer][:held].flatten(0, 1)
            scores = torch.bmm(grouped[first : first + held * self.heads], key)
            scores = torch.add(bias, scores.view(held, self.heads, -1, block.room), alpha=scale)
            shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
            out.append(torch.bmm(shares.flatten(0, 1), value))
        return torch.cat(out).view(rows, 1, heads, width)

    def move(self, source: int, target: int) -> None:
        """Move a sequence to another slot."""
        size = self.block_rows
        block, other, row, into = self.blocks[source // size], self.blocks[target // size], source % size, target % size
        if other.room < block.room:
            other.fit(block.room)
        room = block.room
        for layer in range(self.n_layers):
            other.keys[layer][into, ..., :room] = block.keys[layer][row]
            other.values[layer][into, :, :room] = block.values[layer][row]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unused: positions are passed in."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Unused: a pass with slots has no mask."""
        return query_length, 0


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    slots: SlotCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over the slots of a cache, or plain causal attention for a pass without one.

    query: (rows, heads, positions, d); key, value: (rows, kv heads, positions, d). Returns (rows, positions, heads,
    d).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if slots is not None:
        return slots.attend(query, key, value, scale), None
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=attention_mask is None, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, slot_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
