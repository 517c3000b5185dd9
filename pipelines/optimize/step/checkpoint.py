"""A checkpoint folder, read and written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files of a checkpoint that no step changes."""


def load_model(folder: Path, dtype: str) -> Any:
    """Returns a causal language model of transformers, on the CPU; code in the folder is not run.

    Args:
        folder: the checkpoint.
        dtype: ``auto`` (as saved), ``float32`` or ``bfloat16``.
    """
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer byte for byte: transformers would write it in its own version's form."""
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
