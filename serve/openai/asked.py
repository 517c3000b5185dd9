"""What a client may ask: bodies of /v1/chat/completions and /v1/completions, and requests made of them.

Names that are not listed are let pass, as vLLM lets them; what would change the answer and cannot be had is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from conf.errors import UserError
from conf.schema.sampling import SamplingSpec
from serve.engine.errors import RequestRejected
from serve.engine.prompt import PromptRenderer
from serve.engine.protocol import Request
from serve.middleware.answer import Refused

COMPLETION_TOKENS = 16
"""OpenAI's default of /v1/completions."""
MAX_LOGPROBS = 20
MAX_PROMPTS = 256
SAMPLED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "ignore_eos", "n"),
)


class StreamOptions(msgspec.Struct):
    """What a stream says beside the answer."""

    include_usage: bool = False


class Body(msgspec.Struct, kw_only=True):
    """What both kinds share. Null is as if it were not there."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    # what is refused
    logit_bias: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    stop_token_ids: Any = None
    tools: Any = None
    functions: Any = None
    echo: Any = None
    suffix: Any = None
    best_of: int | None = None
    prompt_logprobs: Any = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to come piece by piece."""
        return bool(self.stream)

    @property
    def has_usage(self) -> bool:
        """Whether a stream ends with the tokens that it used."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(Body):
    """/v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionBody(Body):
    """/v1/completions."""

    prompt: str | list[str | int | list[int]]
    """A text, several, a text's token ids, or several of these."""
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A body, understood."""

    requests: list[Request]
    """One for each prompt."""
    body: Body


REFUSED = (
    *("logit_bias", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("stop_token_ids", "tools", "functions", "echo", "suffix", "prompt_logprobs"),
)


class Reader:
    """Makes requests of bodies."""

    def __init__(self, name: str, chat: PromptRenderer, plain: PromptRenderer, context: int, own: Mapping[str, Any]):
        """Args.

        name: the model's, which a request must name.
        chat: renders conversations.
        plain: tokenizes prompts as they are.
        context: tokens of prompt and answer.
        own: the model's generation_config.json: its defaults are the requests'.
        """
        self._name, self._chat, self._plain, self._context = name, chat, plain, context
        self._own = {key: own[key] for key in SAMPLED if own.get(key) is not None and own.get("do_sample", True)}
        self._own_tokens = own.get("max_new_tokens")
        self._decode_chat = msgspec.json.Decoder(ChatBody)
        self._decode_completion = msgspec.json.Decoder(CompletionBody)

    def chat(self, raw: bytes, request_id: str) -> Asked:
        """Reads a body of /v1/chat/completions.

        Raises:
            Refused: when it cannot be answered.
        """
        body = _decoded(self._decode_chat, raw)
        self._check(body)
        if body.top_logprobs and not body.logprobs:
            raise _bad("top_logprobs needs logprobs=true")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        if not body.messages:
            raise _bad("messages must hold a message")
        try:
            text = self._chat.text([_plain_message(message) for message in body.messages])
        except RequestRejected as error:
            raise _bad(error.message) from None
        tokens = self._chat.tokens([text])[0]
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        return Asked(requests=[self._request(body, request_id, tokens, limit, self._own_tokens, logprobs)], body=body)

    def completion(self, raw: bytes, request_id: str) -> Asked:
        """Reads a body of /v1/completions.

        Raises:
            Refused: when it cannot be answered.
        """
        body = _decoded(self._decode_completion, raw)
        self._check(body)
        prompt: Any = body.prompt
        is_one = isinstance(prompt, str) or all(isinstance(token, int) for token in prompt)
        prompts: list[Any] = [prompt] if is_one else list(prompt)
        if any(isinstance(one, int) for one in prompts):
            raise _bad("prompt must hold texts, or token ids")
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise _bad(f"prompt must hold 1 to {MAX_PROMPTS} prompts, got {len(prompts)}")
        tokens = [self._plain.tokens([one])[0] if isinstance(one, str) else one for one in prompts]
        return Asked(
            requests=[
                self._request(body, f"{request_id}-{i}", ids, body.max_tokens, COMPLETION_TOKENS, body.logprobs)
                for i, ids in enumerate(tokens)
            ],
            body=body,
        )

    def _check(self, body: Body) -> None:
        if body.model not in (None, self._name):
            raise Refused(404, "There is no such model.", "not_found_error", "model_not_found")
        for key in REFUSED:
            if getattr(body, key):
                raise _bad(f"{key} has no use here: the edge engine does not do it")
        if body.response_format is not None and body.response_format.get("type") != "text":
            raise _bad("response_format must be text: the edge engine keeps no grammar")
        if body.best_of not in (None, body.n or 1):
            raise _bad("best_of must be n")

    def _request(
        self, body: Body, request_id: str, tokens: list[int], limit: int | None, usual: int | None, logprobs: int | None
    ) -> Request:
        if not tokens:
            raise _bad("the prompt has no tokens")
        room = self._context - len(tokens)
        if room < 1 or (limit or 0) > room:
            asked = f" and {limit} are asked for" if limit else ""
            raise _bad(
                f"the context is {self._context} tokens; the prompt has {len(tokens)}{asked}", "context_length_exceeded"
            )
        if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
            raise _bad(f"logprobs must be in 0..{MAX_LOGPROBS}, got {logprobs}")
        given = {key: value for key in SAMPLED if (value := getattr(body, key)) is not None}
        if given.get("top_k") == -1:
            given["top_k"] = 0  # vLLM's older word for every token
        stop = [body.stop] if isinstance(body.stop, str) else (body.stop or [])
        max_tokens = limit if limit is not None else min(usual or room, room)
        try:
            sampling = SamplingSpec(
                **{"temperature": 1.0, **self._own, **given}, max_tokens=max_tokens, stop=stop, logprobs=logprobs
            )
        except UserError as error:
            raise _bad(str(error).replace("sampling.", "")) from None
        return Request(id=request_id, token_ids=tokens, sampling=sampling)


def _decoded(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"the body cannot be read: {error}") from None


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a text."""
    if not isinstance(message.get("role"), str):
        raise _bad("a message needs a role")
    content = message.get("content")
    if isinstance(content, list):
        texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _bad("a message's content must be text: the edge engine reads nothing else")
            texts.append(part["text"])
        content = "\n".join(texts)
    if content is not None and not isinstance(content, str):
        raise _bad("a message's content must be text")
    return {**message, "content": content or ""}


def _bad(message: str, code: str = "invalid_request") -> Refused:
    return Refused(400, message, "invalid_request_error", code)
