"""The JSON schema that answers follow: text, or a file that holds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from conf.errors import UserError
from conf.schema.sampling import SamplingSpec


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
