"""The second step: a row becomes token ids and a request key. Each prompt is tokenized here, once."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from conf.schema.data import DataSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch import columns as c
from pipelines.batch.template import MessageBuilder
from serve.engine.errors import RequestRejected
from serve.engine.prompt import load_renderer

_SAMPLE_BYTES = 64 << 10
_SAMPLES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What decides a row's tokens and its key."""

    model: ModelSpec
    model_fingerprint: str
    data: DataSpec
    sampling: SamplingSpec
    columns: list[str]
    """The input's columns."""
    max_model_len: int


def identify(table: pa.Table, identity: Identity) -> pa.Table:
    """Adds token ids and request keys; a row that makes no prompt gets an error instead."""
    renderer = load_renderer(identity.model, identity.max_model_len, identity.data.apply_chat_template)
    builder = MessageBuilder(identity.data, identity.columns)
    errors: list[str | None] = table.column(c.ERROR).to_pylist()
    messages: list[str | None] = table.column(c.MESSAGE).to_pylist()
    texts, index_of = [], []
    for index, row in enumerate(table.select(builder.columns).to_pylist()):
        if errors[index] is not None:
            continue
        try:
            texts.append(renderer.text(builder.messages(row)))
            index_of.append(index)
        except RequestRejected as rejected:
            errors[index], messages[index] = rejected.error, rejected.message
    tokens: list[list[int] | None] = [None] * table.num_rows
    keys: list[str | None] = [None] * table.num_rows
    salt = request_salt(identity.model_fingerprint, "generate", identity.sampling)
    for index, token_ids in zip(index_of, renderer.tokens(texts), strict=True):
        try:
            renderer.check_length(token_ids)
        except RequestRejected as rejected:
            errors[index], messages[index] = rejected.error, rejected.message
            continue
        tokens[index], keys[index] = token_ids, request_key(salt, token_ids)
    for name, values in ((c.ERROR, errors), (c.MESSAGE, messages), (c.TOKENS, tokens), (c.REQUEST_KEY, keys)):
        table = c.with_column(table, name, values)
    return table


def failed_rows(table: pa.Table) -> pa.ChunkedArray:
    """Returns a mask of the rows with which something is wrong."""
    return pc.is_valid(table.column(c.ERROR))  # type: ignore[attr-defined]


def request_salt(model_fingerprint: str, task: str, sampling: SamplingSpec) -> bytes:
    """Returns what all requests of a job share in their keys."""
    shared = {"model": model_fingerprint, "task": task, "sampling": asdict(sampling)}
    return json.dumps(shared, sort_keys=True).encode()


def request_key(salt: bytes, token_ids: list[int]) -> str:
    """Returns a request's key: 32 hex digits of a hash of model, task, sampling and token ids."""
    digest = hashlib.blake2b(salt, digest_size=16)
    digest.update(array("i", token_ids).tobytes())
    return digest.hexdigest()


def fingerprint_model(model: ModelSpec) -> str:
    """Returns 16 hex digits that change when the checkpoint or its tokenizer does.

    Small files count whole. Of weights, the size, both ends and 32 pieces of 64 KiB count: reading 100 GB to name a
    model is too slow, and retraining changes every tensor.

    Raises:
        OSError: when a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for folder in dict.fromkeys((model.path, model.tokenizer or model.path)):
        for path in sorted(Path(folder).expanduser().iterdir()):
            if path.is_file() and path.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt", ".bin", ".py"):
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
