"""Which model, and how its prompts are written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from conf.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True, slots=True)
class ModelSpec:
    """A checkpoint folder in Hugging Face's layout."""

    name: str = ""
    """What the record and the API call it; the folder's name where empty."""
    path: str = MISSING
    """A local folder with config.json, the weights and the tokenizer."""
    tokenizer: str | None = None
    """A folder with another tokenizer; the model's own where null."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA adapters: a folder for each name that data.adapter's column may hold, or a request as its model."""
    dtype: str = "auto"
    """Weights and activations: auto, float32, bfloat16 or float16."""
    trust_remote_code: bool = False
    """Run Python code found in the model folder. Only for folders whose code you have read."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'")
        if not self.name and self.path != MISSING:
            self.name = Path(self.path).expanduser().absolute().name

    def absolute(self) -> ModelSpec:
        """Returns it with absolute paths: workers run in other folders."""

        def path(value: str) -> str:
            return str(Path(value).expanduser().absolute())

        return replace(
            self,
            path=path(self.path),
            tokenizer=self.tokenizer and path(self.tokenizer),
            chat_template=self.chat_template and path(self.chat_template),
            adapters={name: path(folder) for name, folder in self.adapters.items()},
        )
