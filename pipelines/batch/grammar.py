"""The grammar that all answers of a job follow: read, and compiled once before an engine starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema.sampling import SamplingSpec
from serve.engine.errors import RequestRejected
from serve.engine.vllm.grammar import compile_grammar


def read_json_schema(sampling: SamplingSpec) -> SamplingSpec:
    """Returns the parameters with the schema's text in the place of its file's name.

    Raises:
        UserError: when it cannot be read or is no JSON object.
    """
    value = sampling.json_schema
    if value is None:
        return sampling
    text = value
    if not value.lstrip().startswith("{"):
        try:
            text = Path(value).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"sampling.json_schema={value}: neither JSON nor a file that can be read: {error}"
            ) from None
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UserError(f"sampling.json_schema={value[:80]}: no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"sampling.json_schema={value[:80]}: a schema is a JSON object")
    # in the order of the user's: that in which an answer's fields are written
    return replace(sampling, json_schema=json.dumps(schema))


def check_grammar(sampling: SamplingSpec, arguments: Mapping[str, Any]) -> None:
    """Compiles the grammar as vLLM will: one that it refuses would fail every row, after the engine's start.

    Args:
        sampling: the job's, its schema read.
        arguments: engine.vllm.

    Raises:
        UserError: when xgrammar, Manta's default compiler, cannot read it. Of other compilers nothing is known.
    """
    own = arguments.get("structured_outputs_config")
    if own is not None and (not isinstance(own, Mapping) or own.get("backend", "xgrammar") != "xgrammar"):
        return
    try:
        compile_grammar(sampling)
    except RequestRejected as error:
        key = "json_schema" if sampling.json_schema is not None else "regex"
        value = (getattr(sampling, key) or "")[:80]
        raise UserError(f"sampling.{key}={value}: no grammar can be made of it: {error.message}") from error
