"""Names of the columns that travel beside the input's own."""

from __future__ import annotations

import pyarrow as pa

MARK = "__manta_"
"""What all of them begin with."""
ROW_ID = "__manta_row_id"
SOURCE = "__manta_source"
"""The input file's name."""
POSITION = "__manta_position"
"""The record's number in its file, from 1; of JSONL the line's."""
ERROR = "__manta_error"
"""The class of what is wrong with the row; null while nothing is."""
MESSAGE = "__manta_message"
RAW = "__manta_raw"
"""The record's text, where it could not be read as a row."""
TOKENS = "__manta_tokens"
REQUEST_KEY = "__manta_request_key"
ENTRY = "__manta_entry"
"""What the ledger knows the request by: its key where equal requests share an answer, else the key and the position."""
SPLIT = "__manta_split"
"""Of a pair of texts, the index of the token where the second begins."""
ADAPTER = "__manta_adapter"
"""The LoRA adapter; null is the model alone."""
SAMPLING = "__manta_sampling"
"""The row's own sampling parameters as JSON, those that differ from the job's; null where all are the job's."""
ATTEMPTS = "__manta_attempts"

TYPES: dict[str, pa.DataType] = {
    ROW_ID: pa.string(),
    SOURCE: pa.string(),
    POSITION: pa.int64(),
    ERROR: pa.string(),
    MESSAGE: pa.string(),
    RAW: pa.string(),
    TOKENS: pa.list_(pa.int32()),
    REQUEST_KEY: pa.string(),
    ENTRY: pa.string(),
    SPLIT: pa.int32(),
    ADAPTER: pa.string(),
    SAMPLING: pa.string(),
    ATTEMPTS: pa.int32(),
}


NAMED = {REQUEST_KEY: "request_key", ROW_ID: "row_id"}
"""Of ours, those that stand beside an answer, and what the user calls them."""


def input_columns(table: pa.Table) -> list[str]:
    """Returns the names of the input's own columns."""
    return [name for name in table.column_names if not name.startswith(MARK)]


def with_column(table: pa.Table, name: str, values: list | pa.Array | pa.ChunkedArray) -> pa.Table:
    """Returns the table with one of our columns set; others stay as they are."""
    array = pa.array(values, TYPES[name]) if isinstance(values, list) else values
    index = table.schema.get_field_index(name)
    return table.append_column(name, array) if index < 0 else table.set_column(index, name, array)
