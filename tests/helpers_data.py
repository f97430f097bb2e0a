"""What the data and prompt tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

REFERENCE_FILE = "gsm8k/gsm8k_train.json"


def data_folder(marker: str) -> Path:
    """The folder of SDFT_DATA_DIR that holds `marker`; skips the test where there is none."""
    for folder in os.environ.get("SDFT_DATA_DIR", "").split(os.pathsep):
        if folder and (Path(folder) / marker).exists():
            return Path(folder)
    pytest.skip(f"SDFT_DATA_DIR names no folder with {marker}")


def chatml_tokenizer(chat_template: str | None = None, bos: str | None = None) -> Any:
    """A small word-level tokenizer with a ChatML template; every word, space and sign is a token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.WordLevel({"<unk>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|eos|>": 3}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<|eos|>",
        bos_token=bos,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML if chat_template is None else chat_template or None
    return tokenizer


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
