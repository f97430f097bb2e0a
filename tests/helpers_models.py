"""Tiny random models and a small tokenizer, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    *["a", "the", "of", "and", "is", "in", "it", "to", "what", "how", "many", "answer", "question", "sum", "number"],
    *["apple", "tree", "house", "cat", "dog", "red", "blue", "one", "two", "three", "four", "five", "six", "seven"],
    *["eight", "nine", "ten", "plus", "minus", "times", "reference", "instruction", "response", "using", "guide"],
    *["own", "write"],
]


def tiny_tokenizer() -> Any:
    """Byte-level BPE over a few words, with ChatML's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    fast.chat_template = CHATML
    return fast


def save_tiny_model(folder: Path, kind: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """Save a random model of ~0.1 M parameters with its tokenizer as `save_pretrained` writes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    } | overrides
    torch.manual_seed(seed)
    model = (
        MistralForCausalLM(MistralConfig(sliding_window=16, **settings))
        if kind == "mistral"
        else LlamaForCausalLM(LlamaConfig(**settings))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
