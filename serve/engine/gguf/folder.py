"""A model folder with a GGUF file beside the tokenizer and the configuration."""

from __future__ import annotations

from pathlib import Path

from conf.errors import UserError


def is_gguf_folder(path: str) -> bool:
    """Whether a model folder holds a GGUF file."""
    return any(Path(path).expanduser().glob("*.gguf"))


def gguf_file(path: str) -> Path:
    """Returns the one GGUF file of a folder.

    Raises:
        UserError: when there is none, or several.
    """
    files = sorted(Path(path).expanduser().glob("*.gguf"))
    if not files:
        raise UserError(
            f"model.path={path}: no *.gguf in it: engine=gguf runs what manta optimize recipe=gguf makes, or a file of"
            " your own beside its config.json and tokenizer.json"
        )
    if len(files) > 1:
        raise UserError(f"model.path={path}: {len(files)} GGUF files, such as {files[0].name}: leave one of them there")
    return files[0]
