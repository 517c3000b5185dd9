"""LoRA adapters: folders in PEFT's layout, by the name that rows ask for them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from conf.errors import UserError, nearest
from conf.schema.model import ModelSpec
from serve.engine.checkpoint import read_object
from serve.engine.errors import RequestRejected

MAX_RANK = 512
"""Source: vllm/config/lora.py, MaxLoRARanks (0.26-0.32)."""
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


def check_adapters(model: ModelSpec) -> None:
    """Checks that each of `model.adapters` is a LoRA adapter's folder.

    Raises:
        UserError: for the first that is not.
    """
    for name in model.adapters:
        _read_rank(model, name)
        folder = Path(model.adapters[name]).expanduser()
        if not any((folder / file).is_file() for file in WEIGHTS):
            raise UserError(f"{_key(model, name)}: no weights in it (looked for {', '.join(WEIGHTS)})")


def highest_rank(model: ModelSpec) -> int:
    """Returns the highest rank among `model.adapters`, per-module ranks included.

    Raises:
        UserError: when one of them cannot be read, or vLLM knows no such rank.
    """
    return max(_read_rank(model, name) for name in model.adapters)


def check_adapter_name(name: str, adapters: Collection[str]) -> None:
    """Checks the adapter that a request asks for.

    Raises:
        RequestRejected: when there is none of that name.
    """
    if name not in adapters:
        known = ", ".join(sorted(adapters)[:10]) or "it has none"
        more = f" and {len(adapters) - 10} more" if len(adapters) > 10 else ""
        message = f"model.adapters has no '{name}' ({known}{more}){nearest(name, adapters)}"
        raise RequestRejected("unknown_adapter", message)


def _key(model: ModelSpec, name: str) -> str:
    return f"model.adapters.{name}={model.adapters[name]}"


def _read_rank(model: ModelSpec, name: str) -> int:
    """The highest rank in an adapter_config.json.

    Source: peft's LoraConfig, fields peft_type, r and rank_pattern.
    """
    key = _key(model, name)
    config = read_object(key, model.adapters[name], "adapter_config.json")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{key}: peft_type must be LORA, got {kind}")
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
            raise UserError(f"{key}: its rank r must be a whole number in 1..{MAX_RANK}, got {rank}")
    return max(ranks)
