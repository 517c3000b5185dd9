"""The second step: a row becomes token ids and a request key. Each prompt is tokenized here, once."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from conf.schema.batch import Dedupe
from conf.schema.data import DataSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.prompter import Asked, make_prompter
from serve.engine.errors import RequestRejected


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What decides a row's tokens and its key."""

    model: ModelSpec
    model_fingerprint: str
    task: Task
    data: DataSpec
    sampling: SamplingSpec
    dedupe: Dedupe
    columns: list[str]
    """The input's columns."""
    max_model_len: int
    is_joint: bool = False
    """Whether the model reads both texts of a pair at once."""


def identify(table: pa.Table, identity: Identity) -> pa.Table:
    """Adds token ids and request keys; a row that makes no prompt gets an error instead."""
    i = identity
    prompter = make_prompter(i.model, i.data, i.task, i.sampling, i.columns, i.max_model_len)
    errors: list[str | None] = table.column(c.ERROR).to_pylist()
    messages: list[str | None] = table.column(c.MESSAGE).to_pylist()
    asked: dict[int, Asked] = {}
    for index, row in enumerate(table.select(prompter.columns).to_pylist()):
        if errors[index] is None:
            try:
                asked[index] = prompter.ask(row)
            except RequestRejected as rejected:
                errors[index], messages[index] = rejected.error, rejected.message
    values: dict[str, list[Any]] = {
        name: [None] * table.num_rows for name in (c.TOKENS, c.REQUEST_KEY, c.ENTRY, c.SPLIT, c.ADAPTER, c.SAMPLING)
    }
    positions = table.column(c.POSITION).to_pylist()
    salts = _Salts(identity)
    for index, (token_ids, split) in _tokens(asked, identity).items():
        request = asked[index]
        try:
            request.renderer.check_length(token_ids, answer_tokens=int(identity.task is Task.generate))
        except RequestRejected as rejected:
            errors[index], messages[index] = rejected.error, rejected.message
            continue
        salt, own = salts.of(request.sampling)
        key = request_key(salt, token_ids, split, request.adapter)
        values[c.TOKENS][index], values[c.REQUEST_KEY][index] = token_ids, key
        values[c.SPLIT][index], values[c.ADAPTER][index], values[c.SAMPLING][index] = split, request.adapter, own
        values[c.ENTRY][index] = request_entry(key, identity, request.sampling, positions[index])
    values |= {c.ERROR: errors, c.MESSAGE: messages}
    for name, column in values.items():
        table = c.with_column(table, name, column)
    return table


def _tokens(asked: dict[int, Asked], identity: Identity) -> dict[int, tuple[list[int], int | None]]:
    """Tokenizes requests, each renderer's all at once; of pairs also the index where the second text begins."""
    found: dict[int, tuple[list[int], int | None]] = {}
    for renderer in {id(request.renderer): request.renderer for request in asked.values()}.values():
        mine = {index: request for index, request in asked.items() if request.renderer is renderer}
        if identity.task is Task.score:
            found |= {i: renderer.pair(a.text or "", a.pair or "", identity.is_joint) for i, a in mine.items()}
            continue
        texts = {index: request.text for index, request in mine.items() if request.text is not None}
        tokens = zip(texts, renderer.tokens(list(texts.values())), strict=True)
        found |= {index: (token_ids, None) for index, token_ids in tokens}
        found |= {index: (request.token_ids or [], None) for index, request in mine.items() if request.text is None}
    return dict(sorted(found.items()))


class _Salts:
    """Salts of the sampling parameters that rows have, each made once."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._made: dict[str, tuple[bytes, str | None]] = {}
        self._last: tuple[SamplingSpec | None, tuple[bytes, str | None]] = (None, (b"", None))

    def of(self, sampling: SamplingSpec) -> tuple[bytes, str | None]:
        """Returns the salt, and as JSON what differs from the job's parameters; null where nothing does."""
        if sampling is not self._last[0]:
            job = asdict(self._identity.sampling)
            own = {name: value for name, value in asdict(sampling).items() if value != job[name]}
            text = json.dumps(own, sort_keys=True) if own else None
            if (text or "") not in self._made:
                salt = request_salt(self._identity.model_fingerprint, self._identity.task, sampling)
                self._made[text or ""] = (salt, text)
            self._last = (sampling, self._made[text or ""])
        return self._last[1]


def failed_rows(table: pa.Table) -> pa.ChunkedArray:
    """Returns a mask of the rows with which something is wrong."""
    return pc.is_valid(table.column(c.ERROR))  # type: ignore[attr-defined]


def request_salt(model_fingerprint: str, task: Task, sampling: SamplingSpec) -> bytes:
    """Returns what all requests of a job share in their keys."""
    drawn = asdict(sampling) if task is Task.generate else None
    return json.dumps({"model": model_fingerprint, "task": task.value, "sampling": drawn}, sort_keys=True).encode()


def request_key(salt: bytes, token_ids: list[int], split: int | None = None, adapter: str | None = None) -> str:
    """Returns a request's key: 32 hex digits of a hash of model, task, sampling, adapter and token ids."""
    digest = hashlib.blake2b(salt, digest_size=16)
    if split is not None or adapter is not None:
        digest.update(json.dumps([split, adapter]).encode())
    digest.update(array("i", token_ids).tobytes())
    return digest.hexdigest()


def request_entry(key: str, identity: Identity, sampling: SamplingSpec, position: int) -> str:
    """Returns what the ledger knows a request by.

    Equal requests with one entry run once. The position parts those whose answers are drawn anew each time.
    """
    is_alike = identity.task is not Task.generate or sampling.is_deterministic
    shares = identity.dedupe is Dedupe.all or (identity.dedupe is Dedupe.deterministic and is_alike)
    return key if shares else f"{key}:{position}"


def row_sampling(text: str | None, shared: SamplingSpec) -> SamplingSpec:
    """Returns a row's sampling parameters: the job's, but for what `columns.SAMPLING` says."""
    return shared if text is None else replace(shared, **json.loads(text))
