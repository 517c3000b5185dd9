"""What may be asked of /v1/batches: pure checks of what clients send."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from conf.schema.batches import BatchesSpec
from serve.batches.records import Object
from serve.middleware.answer import Refused

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
PURPOSES = ("batch",)
"""What a file may be for."""
MAX_PAGE, MAX_FILES = 100, 10_000
"""Batches, and files, that a list shows at a time."""
MAX_ERRORS = 100
"""A batch that is refused names so many of its lines."""
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512


def asked_batch(body: Any, spec: BatchesSpec) -> tuple[dict[str, Any], float]:
    """Returns what a batch's object says of what was asked, and its window in seconds.

    Raises:
        Refused: 400 with the field that is wrong.
    """
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.", code="invalid_json")
    name, endpoint, window = (body.get(key) for key in ("input_file_id", "endpoint", "completion_window"))
    if not isinstance(name, str):
        raise Refused(400, "input_file_id must be the id of a file.", code="invalid_value")
    if endpoint not in ENDPOINTS:
        raise Refused(400, f"endpoint must be one of {', '.join(ENDPOINTS)}.", code="invalid_value")
    found = _WINDOW.fullmatch(window) if isinstance(window, str) else None
    window_s = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < window_s <= spec.max_window_s:
        most = spec.max_window_s / 3600
        raise Refused(400, f"completion_window must be like 24h, and {most:g}h at most.", code="invalid_value")
    metadata = body.get("metadata")
    if metadata is not None and not _is_metadata(metadata):
        said = f"metadata must be up to {_MAX_PAIRS} names of {_MAX_NAME} characters with texts of {_MAX_VALUE}."
        raise Refused(400, said, code="invalid_value")
    asked = {"input_file_id": name, "endpoint": endpoint, "completion_window": window, "metadata": metadata}
    return asked, window_s


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_PAIRS
        and all(
            len(name) <= _MAX_NAME and isinstance(text, str) and len(text) <= _MAX_VALUE for name, text in value.items()
        )
    )


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


@dataclass(kw_only=True)
class Checked:
    """What a batch's file holds."""

    total: int = 0
    errors: list[Object] = field(default_factory=list)
    """OpenAI's objects, one for each mistake; a batch with any is not run."""

    def note(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Adds a mistake."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})


def check_lines(lines: Iterable[bytes], endpoint: str, models: Iterable[str], max_lines: int) -> Checked:
    """Checks the lines of a batch's file, as far as they concern all of it. A request's own faults are its answer's.

    Args:
        lines: of the file.
        endpoint: the batch's; each line has it as its url.
        models: the names that the service has models under.
        max_lines: more are too many.
    """
    checked, seen, known = Checked(), set[str](), frozenset(models)
    decoder = msgspec.json.Decoder(_Line)
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        checked.total += 1
        if checked.total > max_lines:
            checked.note("too_many_lines", f"The file has more than {max_lines} requests.")
            return checked
        try:
            line = decoder.decode(raw)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            checked.note("invalid_json_line", "The line is no request of a batch.", number)
            continue
        if line.custom_id in seen:
            checked.note("duplicate_custom_id", "The custom_id stands in a line before.", number, "custom_id")
        seen.add(line.custom_id)
        if line.method != "POST":
            checked.note("invalid_method", "method must be POST.", number, "method")
        if line.url != endpoint:
            checked.note("mismatched_endpoint", f"url must be the batch's endpoint, {endpoint}.", number, "url")
        if line.body.model not in known:
            checked.note(
                "model_not_found", f"body.model must be one of {', '.join(sorted(known))}.", number, "body.model"
            )
        if line.body.stream:
            checked.note("invalid_value", "body.stream has no use in a batch.", number, "body.stream")
    if not checked.total:
        checked.note("empty_file", "The file has no requests.")
    return checked
