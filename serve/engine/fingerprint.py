"""What tells one checkpoint from another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from conf.schema.model import ModelSpec

SUFFIXES = (".json", ".jinja", ".safetensors", ".model", ".txt", ".bin", ".py", ".onnx", ".data", ".gguf")
"""Of the files that decide what a model answers."""
_SAMPLE_BYTES = 64 << 10
_SAMPLES = 32
_BESIDE = ("artifact.json", "card.json")
"""What Manta writes beside a checkpoint: how it came to be, and what was measured of it."""


def fingerprint_model(model: ModelSpec) -> str:
    """Returns 16 hex digits that change when the checkpoint, its tokenizer or an adapter does.

    Small files count whole. Of weights, the size, both ends and 32 pieces of 64 KiB count: reading 100 GB to name a
    model is too slow, and retraining changes every tensor.

    Raises:
        OSError: when a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for folder in dict.fromkeys((model.path, model.tokenizer or model.path, *model.adapters.values())):
        for path in sorted(Path(folder).expanduser().iterdir()):
            if path.is_file() and path.suffix in SUFFIXES and path.name not in _BESIDE:
                digest.update(path.name.encode())
                _hash_file(path, digest)
    if model.chat_template is not None:
        _hash_file(Path(model.chat_template), digest)
    digest.update(model.dtype.encode())
    return digest.hexdigest()


def _hash_file(path: Path, digest: Any) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as stream:
        if size <= 64 * _SAMPLE_BYTES:
            digest.update(stream.read())
            return
        for sample in range(_SAMPLES + 1):
            stream.seek((size - _SAMPLE_BYTES) * sample // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
