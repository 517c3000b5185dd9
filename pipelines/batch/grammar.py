"""The grammar that all answers of a job follow: read, and compiled once before an engine starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.child import manta_environment
from conf.errors import UserError
from conf.schema.sampling import SamplingSpec
from serve.engine.errors import RequestRejected
from serve.engine.vllm.compiler import REFUSED
from serve.engine.vllm.grammar import grammar_fields

COMPILE_S = 60.0
"""What takes longer to compile is left to the engine."""


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
    """Compiles the grammar as the engine will: what it refuses fails every row, after its start.

    Args:
        sampling: the job's, its schema read.
        arguments: engine.vllm.

    Raises:
        UserError: when xgrammar, Manta's compiler, cannot read it. Of other compilers nothing is known, and vLLM's own
            default tries another one.
    """
    own = arguments.get("structured_outputs_config")
    if own is not None and (not isinstance(own, Mapping) or own.get("backend", "auto") != "xgrammar"):
        return
    try:
        fields = grammar_fields(sampling)
        reason = _refusal(fields) if fields.keys() & {"json", "regex"} else None
    except RequestRejected as error:
        reason = error.message
    if reason is not None:
        key = "json_schema" if sampling.json_schema is not None else "regex"
        value = (getattr(sampling, key) or "")[:80]
        raise UserError(f"sampling.{key}={value}: no grammar can be made of it: {reason}")


def _refusal(fields: Mapping[str, Any]) -> str | None:
    """Why no grammar can be made; null where one can, or nothing can be said, as without vLLM on this machine."""
    command, given = [sys.executable, "-m", "serve.engine.vllm.compiler"], json.dumps(fields).encode()
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, timeout=COMPILE_S, env=manta_environment(), check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == REFUSED else None
