"""From a row's columns to chat messages. Templates are sandboxed and strict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from conf.errors import UserError, nearest
from conf.schema.data import DataSpec
from serve.engine.errors import RequestRejected
from serve.engine.prompt import Message

ROW = "row"
"""In a template, the whole row: for columns whose names are no identifiers."""


class _Unprintable(Exception):
    """A value that a template must not print."""


class _Null(jinja2.StrictUndefined):
    """A null in a column: false, none, given a default, but never printed as 'None', not by a filter either."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)

    __hash__ = jinja2.StrictUndefined.__hash__


def _finalize(value: Any) -> Any:
    if value is None:
        raise _Unprintable("a null value")
    if isinstance(value, (list, dict, tuple)):
        raise _Unprintable(f"a {type(value).__name__}; write '| tojson' to print one")
    return value


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=_finalize, autoescape=False, keep_trailing_newline=False
)
_ENVIRONMENT.filters["tojson"] = lambda value: "null" if isinstance(value, _Null) else _to_json(value)
_ENVIRONMENT.tests["none"] = lambda value: value is None or isinstance(value, _Null)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


class MessageBuilder:
    """Makes the messages of a row."""

    def __init__(self, spec: DataSpec, columns: list[str]) -> None:
        """Compiles the templates and checks that the table has what they name.

        Raises:
            UserError: for a template that does not parse, or a column that the table lacks.
        """
        self._messages_column = spec.messages
        self._prompt: jinja2.Template | None = None
        self._system: jinja2.Template | None = None
        self._document: jinja2.Template | None = None
        names = {name for name in (spec.messages, spec.adapter, spec.max_tokens) if name is not None}
        self.columns: list[str] = sorted(names)
        """The columns that are read."""
        if spec.adapter is not None:
            _check_columns({spec.adapter}, columns, "data.adapter")
        if spec.max_tokens is not None:
            _check_columns({spec.max_tokens}, columns, "data.max_tokens")
        if spec.messages is not None:
            _check_columns({spec.messages}, columns, "data.messages")
            return
        key = "data.prompt" if spec.prompt is not None else "data.prompt_file"
        environment = _ENVIRONMENT.overlay()
        # a column may be called 'range'
        environment.globals = {name: value for name, value in environment.globals.items() if name not in columns}
        self._prompt = _compile(environment, prompt_source(spec), key, columns, names)
        if spec.system is not None:
            self._system = _compile(environment, spec.system, "data.system", columns, names)
        if spec.document is not None:
            self._document = _compile(environment, spec.document, "data.document", columns, names)
        self.columns = columns if ROW in names and ROW not in columns else [name for name in columns if name in names]
        self._whole_row = ROW in names and ROW not in columns

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """Makes the messages of one row.

        Raises:
            RequestRejected: when the row makes none; the class says why.
        """
        if self._messages_column is not None:
            return read_messages(row[self._messages_column])
        assert self._prompt is not None
        messages = []
        if self._system is not None and (system := self._render(self._system, row)):
            messages.append({"role": "system", "content": system})
        prompt = self._render(self._prompt, row)
        if not prompt.strip():
            raise RequestRejected("empty_prompt", "the prompt is empty")
        return [*messages, {"role": "user", "content": prompt}]

    def document(self, row: dict[str, Any]) -> str | None:
        """Makes the second text of one row; null where the job has no template for it.

        Raises:
            RequestRejected: when the row makes none.
        """
        if self._document is None:
            return None
        text = self._render(self._document, row)
        if not text.strip():
            raise RequestRejected("empty_prompt", "the document is empty")
        return text

    def _render(self, template: jinja2.Template, row: dict[str, Any]) -> str:
        known = {name: _Null("it is null", name=name) if value is None else value for name, value in row.items()}
        if self._whole_row:
            known[ROW] = dict(known)
        try:
            return template.render(known)
        except jinja2.UndefinedError as error:
            null = next((name for name, value in row.items() if value is None), None)
            message = f"column '{null}' is null" if "it is null" in str(error) and null else str(error)
            raise RequestRejected("template_error", message) from error
        except _Unprintable as error:
            raise RequestRejected("template_error", f"the template prints {error}") from error
        except Exception as error:  # a template can raise anything that its expressions can
            raise RequestRejected("template_error", f"{type(error).__name__}: {error}") from error


def prompt_source(spec: DataSpec) -> str:
    """Returns the prompt's template.

    Raises:
        UserError: when its file cannot be read.
    """
    if spec.prompt is not None:
        return spec.prompt
    assert spec.prompt_file is not None
    try:
        return Path(spec.prompt_file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.prompt_file={spec.prompt_file}: cannot be read: {error}") from None


def _compile(
    environment: jinja2.Environment, source: str, key: str, columns: list[str], names: set[str]
) -> jinja2.Template:
    try:
        parsed = environment.parse(source)
        found = meta.find_undeclared_variables(parsed)
        template = environment.from_string(source)
        template.globals = dict(template.globals)  # Jinja's chain of mappings is copied for each row: 7 of 11 us
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{key}: line {error.lineno} of the template: {error.message}") from None
    except jinja2.TemplateError as error:
        raise UserError(f"{key}: {error}") from None
    if any(True for _ in meta.find_referenced_templates(parsed)):
        raise UserError(f"{key}: a template cannot include, import or extend another")
    _check_columns(found - {ROW}, columns, key)
    names |= found
    return template


def _check_columns(wanted: set[str], columns: list[str], key: str) -> None:
    for name in sorted(wanted - set(columns)):
        hint = f"{nearest(name, columns)} (there are {', '.join(columns)})"
        raise UserError(f"{key} names the column '{name}', which the table lacks{hint}")


def read_messages(value: Any) -> list[Message]:
    """Returns a cell's messages.

    Args:
        value: a list of messages, or its JSON.

    Raises:
        RequestRejected: when it holds none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestRejected("wrong_type", f"messages are no JSON: {error}") from error
    if not isinstance(value, list):
        raise RequestRejected("wrong_type", f"messages must be a list, this is {type(value).__name__}")
    if not value:
        raise RequestRejected("empty_prompt", "there are no messages")
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestRejected("wrong_type", f"message {index} must be an object with a role")
        # Arrow gives every struct all fields of the column: those that are null were not there
        messages.append({name: part for name, part in message.items() if part is not None})
        content = messages[-1].get("content")
        if content is None and "tool_calls" not in messages[-1]:
            raise RequestRejected("wrong_type", f"message {index} has no content")
        if not isinstance(content, (str, list, type(None))):
            raise RequestRejected("wrong_type", f"content of message {index} must be text or a list of parts")
    return messages
