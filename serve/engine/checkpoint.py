"""A checkpoint's folder: its config.json, its context, and how it can be divided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema.model import ModelSpec
from serve.engine.architecture import text_config


def read_model_config(model: ModelSpec) -> dict[str, Any]:
    """Reads config.json of a checkpoint folder.

    Raises:
        UserError: when the folder is no checkpoint in Hugging Face's layout.
    """
    config = read_object(f"model.path={model.path}", model.path, "config.json")
    tokenizer = Path(model.tokenizer or model.path).expanduser()
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((tokenizer / name).is_file() for name in files):
        raise UserError(f"model.tokenizer={tokenizer}: no tokenizer in it (looked for {', '.join(files)})")
    if model.chat_template is not None and not Path(model.chat_template).expanduser().is_file():
        raise UserError(f"model.chat_template={model.chat_template}: no such file")
    return config


def read_object(key: str, path: str, name: str) -> dict[str, Any]:
    """Reads a JSON object of a folder that the user named.

    Args:
        key: what the user set, with its value; errors begin with it.
        path: the folder.
        name: of the file in it.

    Raises:
        UserError: when it is not there, or no object.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{key}: no such folder (it must be a local folder with {name})")
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{key}: no {name} in it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{key}: {name} must hold an object")
    return found


def plain_config(path: str) -> dict[str, Any]:
    """Returns a checkpoint's config.json; nothing where it cannot be read, of which `read_model_config` says why."""
    try:
        return read_object("", path, "config.json")
    except UserError:
        return {}


def context_tokens(config: dict[str, Any], max_model_len: int | None) -> int:
    """Returns the context in tokens: what is asked for, else the model's own.

    Raises:
        UserError: when more is asked for than the model has.
    """
    own = int(text_config(config).get("max_position_embeddings") or 0)
    if max_model_len is None:
        return own or 2048
    if own and max_model_len > own:
        raise UserError(
            f"engine.max_model_len must be <= the model's max_position_embeddings={own}, got {max_model_len}"
        )
    return max_model_len


def check_partition(config: dict[str, Any], tensor_parallel_size: int, pipeline_parallel_size: int) -> None:
    """Checks that heads and layers can be divided.

    Raises:
        UserError: when they cannot.
    """
    text = text_config(config)
    heads, layers = text.get("num_attention_heads"), text.get("num_hidden_layers")
    if heads and heads % tensor_parallel_size:
        raise UserError(
            f"engine.tensor_parallel_size must divide num_attention_heads={heads}, got {tensor_parallel_size}"
        )
    if layers and pipeline_parallel_size > layers:
        raise UserError(
            f"engine.pipeline_parallel_size must be <= num_hidden_layers={layers}, got {pipeline_parallel_size}"
        )
