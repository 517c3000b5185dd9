"""JSONL, line by line: one bad line must not cost the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_BOM = b"\xef\xbb\xbf"


def lines_of(stream: pa.NativeFile) -> Iterator[bytes]:
    r"""Yields lines with their line ends.

    Splits at ``\n`` alone: a lone carriage return may stand inside a record. Reads in blocks of 4 MiB.
    """
    rest = b""
    while block := stream.read(4 << 20):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def parse_line(line: bytes) -> dict[str, Any]:
    """Parses one line.

    Raises:
        ValueError: when it is no JSON object; the message says what it is.
    """
    try:
        row = json.loads(line.removeprefix(_BOM).decode())  # bytes would let half a surrogate pair through
        if b"\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is wanted, this is {type(row).__name__}")
    return row
