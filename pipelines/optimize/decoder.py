"""A decoder as transformers holds it: loaded, checked and saved as a whole checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.optimize.step.task import StepFailed

if TYPE_CHECKING:
    import torch

SHAPES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` whose layers have Llama's parts under Llama's names."""
_BESIDE = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template", "generation_config")


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a checkpoint's config.json.

    Raises:
        StepFailed: when it cannot be read.
    """
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StepFailed(f"{folder / 'config.json'} cannot be read: {error}") from error


def check_plain(config: dict[str, Any], key: str) -> None:
    """Checks that weights are plain numbers.

    Raises:
        StepFailed: when they are quantized.
    """
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "quantized")
        raise StepFailed(f"{key} takes a checkpoint of plain weights, got one that is quantized ({method})")


def check_shape(config: dict[str, Any], key: str) -> None:
    """Checks that a model has Llama's parts.

    Raises:
        StepFailed: when it has others.
    """
    kind = config.get("model_type")
    if kind not in SHAPES:
        raise StepFailed(f"{key} knows the models {', '.join(SHAPES)}, got model_type={kind}")


def pick_device() -> torch.device:
    """Returns the first GPU, or the CPU where there is none."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_decoder(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """Loads a causal language model on the CPU, for evaluation.

    Args:
        folder: A checkpoint.
        dtype: Of its weights; None takes the checkpoint's own.

    Raises:
        StepFailed: when it does not load.
    """
    # Bars are for terminals; a step's output is a log. Read once, when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    import transformers

    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise StepFailed(f"{folder} does not load as a causal language model: {error}") from error
    return model.eval()


def stored_dtype(config: dict[str, Any]) -> torch.dtype:
    """Returns the type in which a checkpoint's weights are stored; float32 where it does not say."""
    import torch

    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, name)


def save_decoder(model: Any, source: Path, target: Path) -> None:
    """Writes a whole checkpoint.

    Args:
        model: A causal language model; its weights are turned into the source's type in place.
        source: The checkpoint that it came from; its tokenizer goes along.
        target: An existing folder.
    """
    dtype = stored_dtype(read_config(source))
    # The class's own method: libraries put theirs, which compress, over the instance's.
    type(model).save_pretrained(model.to(device="cpu", dtype=dtype), target)
    copy_tokenizer(source, target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a checkpoint's tokenizer byte for byte: transformers would write it in its own version's form."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(_BESIDE) or path.suffix in (".jinja", ".model"):
            shutil.copyfile(path, target / path.name)


def narrow(source: Path, target: Path) -> None:
    """Gives what a checkpoint holds in float32 the type that its source has: scales, norms, embeddings.

    Args:
        source: The checkpoint that it came from.
        target: What was saved in float32; changed in place.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    dtype = stored_dtype(read_config(source))
    for path in sorted(target.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        wide = {name: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
        save_file(wide, path, metadata={"format": "pt"})
    config = read_config(target)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
