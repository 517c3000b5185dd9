"""Which model, and how its prompts are written."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True, slots=True)
class ModelSpec:
    """A checkpoint folder in Hugging Face's layout."""

    name: str = "model"
    """What the record calls it."""
    path: str = MISSING
    """A local folder with config.json, the weights and the tokenizer."""
    tokenizer: str | None = None
    """A folder with another tokenizer; the model's own where null."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA adapters: a folder for each name that data.adapter's column may hold."""
    dtype: str = "auto"
    """Weights and activations: auto, float32, bfloat16 or float16."""
    trust_remote_code: bool = False
    """Run Python code found in the model folder. Only for folders whose code you have read."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'")
