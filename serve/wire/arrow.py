"""Arrow IPC streams: a table of embeddings out, a column of texts in. What is no column is in the schema's metadata."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
from flatbuffers import encode as flat
from flatbuffers import packer
from flatbuffers.table import Table

from serve.wire.shape import Malformed, singles

_BODY_COMPRESSION = 10
"""Where a record batch's table names its compression. Source: format/Message.fbs of Apache Arrow."""


def encode(body: dict[str, Any]) -> bytes:
    """Returns embeddings as a table of ``index`` and ``embedding`` (float32, a fixed-size list).

    Raises:
        Malformed: when what is in ``data`` are no vectors of one length.
    """
    data = body.get("data") or []
    vectors = [singles(item.get("embedding")) for item in data]
    lengths = {0 if vector is None else len(vector) for vector in vectors} or {1}
    if len(lengths) > 1 or 0 in lengths:
        raise Malformed("no vectors of one length")
    floats = pa.py_buffer(b"".join(vector.tobytes() for vector in vectors if vector is not None))
    (length,) = lengths
    numbers = pa.Array.from_buffers(pa.float32(), len(data) * length, [None, floats])
    column = pa.FixedSizeListArray.from_arrays(numbers, length)
    index = pa.array([item.get("index", place) for place, item in enumerate(data)], pa.int64())
    said = {key: value for key, value in body.items() if key != "data" and value is not None}
    metadata = {key: value if isinstance(value, str) else msgspec.json.encode(value) for key, value in said.items()}
    table = pa.table({"index": index, "embedding": column}, metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def decode(raw: bytes) -> dict[str, Any]:
    """Returns a request for embeddings: the column ``input``, and of the metadata ``model`` and ``extra_json``.

    Raises:
        Malformed: when it is no stream of such batches, or they are compressed: they could hold any number of bytes.
    """
    try:
        schema = pa.ipc.open_stream(raw).schema
        if schema.names != ["input"] or schema.field("input").type not in (pa.string(), pa.large_string()):
            raise Malformed("it must have one column, input, of texts")
        _check_plain(raw)
        with pa.ipc.open_stream(raw) as reader:
            table = reader.read_all()
        table.validate(full=True)
        texts = table["input"].to_pylist()
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        body = msgspec.json.decode(metadata.get("extra_json", "{}"), type=dict[str, Any])
    except (pa.ArrowException, ValueError, OSError, EOFError, MemoryError, RecursionError) as error:
        raise error if isinstance(error, Malformed) else Malformed("no stream of Arrow") from None
    if None in texts or "input" in body:
        raise Malformed("input must have a text in each row")
    if "model" in metadata:
        body["model"] = metadata["model"]
    return body | {"input": texts}


def _check_plain(raw: bytes) -> None:
    for message in pa.ipc.MessageReader.open_stream(raw):
        if message.type != "record batch":
            continue
        metadata = message.metadata.to_pybytes()
        root = Table(metadata, flat.Get(packer.uoffset, metadata, 0))
        header = root.Offset(8)
        batch = Table(metadata, root.Indirect(root.Pos + header))
        if batch.Offset(_BODY_COMPRESSION):
            raise Malformed("batches must not be compressed")
