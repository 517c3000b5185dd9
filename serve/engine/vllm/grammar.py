"""Grammars that answers must keep, checked where vLLM's own checks have holes."""

from __future__ import annotations

import json
from typing import Any

from conf.schema.sampling import SamplingSpec
from serve.engine.errors import RequestRejected

MAX_NESTING = 64
"""Objects and arrays within each other in a JSON schema. Source: vllm/sampling_params.py (0.32; 0.26 has no limit)."""


def has_grammar(spec: SamplingSpec) -> bool:
    """Returns whether a grammar constrains the answer."""
    return spec.json_schema is not None or spec.regex is not None or bool(spec.choice)


def grammar(spec: SamplingSpec) -> Any:
    """Returns vLLM's StructuredOutputsParams, or None where the answer is free.

    Raises:
        RequestRejected: see `grammar_fields`.
    """
    fields = grammar_fields(spec)
    if not fields:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(**fields)


def grammar_fields(spec: SamplingSpec) -> dict[str, Any]:
    """Returns the fields of vLLM's StructuredOutputsParams; none where the answer is free.

    Raises:
        RequestRejected: for what is no grammar by itself; the rest is for vLLM to say.
    """
    if spec.json_schema is not None:
        check_schema(spec.json_schema)
        return {"json": spec.json_schema}
    if spec.regex is not None:
        if "\x00" in spec.regex:  # 0.26 gives it to the compiler, which is C++ and cannot take it
            raise RequestRejected("bad_grammar", "the regular expression has a NUL character")
        return {"regex": spec.regex}
    return {"choice": list(spec.choice)} if spec.choice else {}


def check_schema(text: str) -> None:
    """Checks the outer form of a JSON schema.

    Raises:
        RequestRejected: when it is no JSON object, is nested too deeply, or refers to something outside of it.
    """
    try:
        schema = json.loads(text)
    except RecursionError:
        raise _bad(f"is nested deeper than {MAX_NESTING}") from None
    except ValueError as error:
        raise _bad(f"is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise _bad(f"must be an object, got {text[:80]}")
    level: list[Any] = [schema]
    for _ in range(MAX_NESTING):
        for node in level:
            reference = node.get("$ref") if isinstance(node, dict) else None
            if isinstance(reference, str) and not reference.startswith("#"):
                raise _bad(f"refers to '{reference}': only #/... can be resolved")  # xgrammar would let anything pass
        inner = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return
    raise _bad(f"is nested deeper than {MAX_NESTING}")


def _bad(what: str) -> RequestRejected:
    return RequestRejected("bad_grammar", f"the JSON schema {what}")
