"""Lines of OpenAI Batch input files, as requests: each line is untrusted and costs itself at most.

A line is ``{"custom_id", "method": "POST", "url", "body"}``; its body is what OpenAI's API and vLLM's server take. What
it does not name comes from the job's `sampling` node: length and temperature are the job's, not OpenAI's (temperature
1). A null is as good as no field.

Rejected as ``unsupported``, by the field's name: tools, whatever the choice (the answer would need a parser); several
prompts in one line (write a line for each); images, sound and files; streaming; any other field that would change the
answer, unless it says what holds anyway; and unknown fields, for ``max_token`` must not pass for ``max_tokens``. Fields
that change no answer, such as ``user`` and ``metadata``, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from conf.errors import UserError, nearest
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.errors import RequestRejected
from serve.engine.prompt import Message

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TASKS = {CHAT: Task.generate, COMPLETIONS: Task.generate, EMBEDDINGS: Task.embed}


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _whole(value: Any, bits: int = 32) -> int | None:
    """A whole number, be it written 16.0; a bool is one to Python, not to JSON."""
    number = int(value) if type(value) is int or (type(value) is float and value.is_integer()) else None
    return number if number is not None and -(2 ** (bits - 1)) <= number < 2 ** (bits - 1) else None


def _texts(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(item, str) and item for item in value) else None


def _schema(value: Any) -> str | None:
    """JSON text. Never anything else: the sampling node would take it for a file's name."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        return json.dumps(value, allow_nan=False) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


Rule = tuple[str, Callable[[Any], Any]]
"""What a value must be, in words, and what makes of it what we keep, or null where it is something else."""
_TEXT: Rule = ("text, not empty", lambda value: value if isinstance(value, str) and value else None)
_FLAG: Rule = ("true or false", lambda value: value if isinstance(value, bool) else None)
_OBJECT: Rule = ("an object", lambda value: value if isinstance(value, dict) else None)
_NUMBER: Rule = ("a finite number", lambda x: float(x) if type(x) in (int, float) and abs(x) < 1e300 else None)
_WHOLE: Rule = ("a whole number of 32 bits", _whole)
_SEED: Rule = ("a whole number of 64 bits", partial(_whole, bits=64))
_STOP: Rule = ("text or texts, none empty", lambda value: _texts([value] if isinstance(value, str) else value))
_ENCODING: Rule = ("float or base64", lambda value: value if value in ("float", "base64") else None)

_SAMPLING: dict[str, Rule] = {
    **dict.fromkeys(_names("temperature top_p min_p repetition_penalty presence_penalty frequency_penalty"), _NUMBER),
    **dict.fromkeys(_names("top_k n max_tokens"), _WHOLE),
    **{"seed": _SEED, "stop": _STOP, "ignore_eos": _FLAG},
}
"""Fields of a body that are fields of `SamplingSpec`."""
_FORMS: dict[str, tuple[str, Rule]] = {
    "json": ("json_schema", ("a JSON schema: an object", _schema)),
    "regex": ("regex", _TEXT),
    "choice": ("choice", ("a list of texts", lambda value: _texts(value) or None)),
}
"""vLLM's names of the forms that an answer can have, and ours."""
_GUIDED = {f"guided_{form}": form for form in _FORMS}
"""vLLM's older names. Today's vLLM warns and answers in any form; here they mean what they meant."""

_GENERATE = _names("logprobs response_format structured_outputs").union(_SAMPLING, _GUIDED)
_READ = {
    CHAT: _GENERATE | _names("messages max_completion_tokens top_logprobs"),
    COMPLETIONS: _GENERATE | _names("prompt"),
    EMBEDDINGS: _names("input encoding_format"),
}
_IGNORED = _names(
    "model user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention cache_salt "
    "request_id session_id priority stream_interval parallel_tool_calls"
)
_EMPTY = _names(
    "stream stream_options echo suffix tools functions logit_bias min_tokens stop_token_ids allowed_token_ids "
    "bad_words use_beam_search include_stop_str_in_output continue_final_message documents chat_template_kwargs "
    "mm_processor_kwargs media_io_kwargs vllm_xargs kv_transfer_params return_token_ids return_tokens_as_token_ids"
)
"""Not supported, unless false, zero or empty."""
_FIXED: dict[str, Any] = dict.fromkeys(_names("skip_special_tokens spaces_between_special_tokens"), True)
_FIXED |= dict.fromkeys(_names("add_generation_prompt include_reasoning use_activation best_of length_penalty"), 1)
_FIXED |= {"modalities": ["text"], "tool_choice": "none", "function_call": "none", "embed_dtype": "float32"}
"""Not supported, unless it has this value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRequest:
    """A line of an input file."""

    custom_id: str
    url: str
    messages: list[Message] | None
    """Of a chat: roles, and contents that are text."""
    prompt: str | list[int] | None
    """Of the other two: text, or token ids. They are at least 0; whether the model has them is not checked here."""
    sampling: SamplingSpec
    model: str | None
    """What the file calls the model. Not matched: OpenAI's files name OpenAI's models, and the job has one model."""
    encoding_format: str
    """Of an embedding: float or base64."""


def task_of(url: str) -> Task:
    """Returns what a url asks of the model.

    Raises:
        RequestRejected: ``unsupported`` for a url that is none of ours.
    """
    if url not in TASKS:
        raise RequestRejected("unsupported", f"url must be one of {', '.join(TASKS)}, this is {_shown(url)}")
    return TASKS[url]


def parse_request(row: dict[str, Any], defaults: SamplingSpec, task: Task) -> BatchRequest:
    """Reads one line.

    Args:
        row: the parsed line. Not an Arrow struct: that has nulls in places where a schema had nothing.
        defaults: sampling of what the body does not name.
        task: the job's.

    Raises:
        RequestRejected: ``bad_request`` for a line of the wrong shape or a value against the rules, ``empty_prompt``
            where there is nothing to answer, ``unsupported`` for what we do not do.

    Source: vllm/entrypoints/launchers/run_batch.py, class BatchRequestInput, and the protocol.py of each url (0.32).
    """
    custom_id, method, url = (_read(row, name, _TEXT, path="") for name in ("custom_id", "method", "url"))
    body = _read(row, "body", _OBJECT, path="")
    if missing := [name for name in ("custom_id", "method", "url", "body") if row.get(name) is None]:
        raise _bad(f"{' and '.join(missing)} is missing")
    if method != "POST":
        raise _bad(f"method must be POST, this is {_shown(method)}")
    if task_of(url) is not task:
        raise RequestRejected("unsupported", f"url {url} needs task={TASKS[url].value}, the job's is {task.value}")
    _check_names(body, url)
    return BatchRequest(
        custom_id=custom_id,
        url=url,
        messages=_messages(body.get("messages")) if url == CHAT else None,
        prompt=None if url == CHAT else _prompt(body, "prompt" if url == COMPLETIONS else "input"),
        sampling=defaults if url == EMBEDDINGS else _sampling(body, url, defaults),
        model=_read(body, "model", _TEXT),
        encoding_format=_read(body, "encoding_format", _ENCODING) or "float",
    )


def _read(fields: dict[str, Any], name: str, rule: Rule, path: str = "body.") -> Any:
    """A field's value; null where it is absent."""
    words, make = rule
    value = fields.get(name)
    made = None if value is None else make(value)
    if made is None and value is not None:
        raise _bad(f"{path}{name} must be {words}, this is {_kind(value)}")
    return made


def _check_names(body: dict[str, Any], url: str) -> None:
    fixed = {**_FIXED, "add_special_tokens": url != CHAT}  # a chat template writes the special tokens itself
    for name, value in body.items():
        is_fine = value is None or name in _READ[url] or name in _IGNORED or (name in _EMPTY and not value)
        if is_fine or (name in fixed and value == fixed[name]):
            continue
        hint = "" if name in _EMPTY or name in fixed else nearest(name[:60], _READ[url])
        raise RequestRejected("unsupported", f"body: {_shown(name)} is not supported{hint}")


def _sampling(body: dict[str, Any], url: str, defaults: SamplingSpec) -> SamplingSpec:
    """The job's sampling with what the body names.

    Source: vllm/entrypoints/openai/{chat_completion,completion}/protocol.py, to_sampling_params (0.32).
    """
    named = {name: _read(body, name, rule) for name, rule in _SAMPLING.items()}
    changes = {name: value for name, value in named.items() if value is not None}
    if changes.get("top_k") == -1:  # vLLM's other word for every token
        changes["top_k"] = 0
    if url == CHAT:
        if (most := _read(body, "max_completion_tokens", _WHOLE)) is not None:
            changes["max_tokens"] = most
        wanted, top = _read(body, "logprobs", _FLAG), _read(body, "top_logprobs", _WHOLE)
        if top and not wanted:
            raise _bad("body.top_logprobs needs body.logprobs=true")
        if wanted is not None:
            changes["logprobs"] = (top or 0) if wanted else None
    elif (top := _read(body, "logprobs", _WHOLE)) is not None:
        changes["logprobs"] = top
    changes |= _form(body)
    try:
        return replace(defaults, **changes) if changes else defaults
    except UserError as error:
        raise _bad(str(error).replace("sampling.", "body.")) from error


def _form(body: dict[str, Any]) -> dict[str, Any]:
    """The form that answers must have: a schema, a regular expression or a choice.

    Source: vllm/entrypoints/generate/base/protocol.py, structured_outputs_from_response_format (0.32).
    """
    found: dict[str, tuple[str, Any]] = {name: (form, body.get(name)) for name, form in _GUIDED.items()}
    asked = _read(body, "response_format", _OBJECT)
    kind = None if asked is None else asked.get("type", "")
    if asked is not None and kind == "json_schema":
        inner = _read(asked, "json_schema", _OBJECT, "body.response_format.") or {}
        schema = "" if inner.get("schema") is None else inner["schema"]
        found["response_format.json_schema.schema"] = ("json", schema)
    elif kind == "json_object":
        found["response_format"] = ("json", {"type": "object"})
    elif asked is not None and kind != "text":
        raise RequestRejected("unsupported", "body.response_format must have type text, json_object or json_schema")
    for name, value in (_read(body, "structured_outputs", _OBJECT) or {}).items():
        if name in _FORMS:
            found[f"structured_outputs.{name}"] = (name, value)
        elif name == "json_object" and value is True:
            found["structured_outputs.json_object"] = ("json", {"type": "object"})
        elif value:
            raise RequestRejected("unsupported", f"body.structured_outputs: {_shown(name)} is not supported")
    found = {path: pair for path, pair in found.items() if pair[1] is not None}
    if len(found) > 1:
        raise _bad(f"body.{' and body.'.join(found)}: an answer has one form")
    forms: dict[str, Any] = {"json_schema": None, "regex": None, "choice": []}
    for path, (form, value) in found.items():
        ours, rule = _FORMS[form]
        forms[ours] = _read({path: value}, path, rule)
    return {} if asked is None and not found else forms


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise _bad(f"body.messages must be a list, this is {_kind(value)}")
    if not value:
        raise RequestRejected("empty_prompt", "body.messages is empty")
    messages = []
    for path, message in ((f"body.messages[{index}]", message) for index, message in enumerate(value)):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _bad(f"{path} must be an object with a role")
        kept = {name: part for name, part in message.items() if part is not None}
        content = kept.get("content")
        if isinstance(content, list):
            # joined with line ends, as vLLM does for templates that take text
            kept["content"] = "\n".join(_part(part, f"{path}.content[{i}]") for i, part in enumerate(content))
        elif not isinstance(content, str) and (content is not None or not kept.get("tool_calls")):
            raise _bad(f"{path}.content must be text or a list of parts, this is {_kind(content)}")
        messages.append(kept)
    return messages


def _part(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return part[kind]
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        raise RequestRejected("unsupported", f"{path} is of type {_shown(kind)}: only text is supported")
    raise _bad(f"{path} must be an object with a type and its text")


def _prompt(body: dict[str, Any], name: str) -> str | list[int]:
    """Text or token ids; a list of one of these is that one."""
    value = body.get(name)
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        if len(value) > 1:
            raise RequestRejected("unsupported", f"body.{name} holds {len(value)} prompts: write a line for each")
        value = value[0]
    if value in ("", []):
        raise RequestRejected("empty_prompt", f"body.{name} is empty")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(token) is int and 0 <= token < 2**31 for token in value):
        return value
    raise _bad(f"body.{name} must be text or a list of token ids, this is {_kind(value)}")


def _bad(message: str) -> RequestRejected:
    return RequestRejected("bad_request", message)


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(text: str) -> str:
    """Somebody's text on one line, cut."""
    return repr(text[:60])
