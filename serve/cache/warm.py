"""Answers of a batch job, put where a service looks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from conf.schema.sampling import SamplingSpec
from serve.cache.entry import make_entry
from serve.cache.key import question
from serve.cache.store import Store

_ALWAYS = ("max_tokens", "temperature")
_OWN = ("n", "logprobs", "json_schema", "regex", "choice")
"""Parameters that the API spells otherwise, or that clients leave away."""


async def warm(
    store: Store,
    pairs: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
    *,
    fingerprint: str,
    tenants: Sequence[str | None] = (None,),
) -> int:
    """Keeps answers that were computed elsewhere. The two files of an OpenAI Batch job hold just these.

    Args:
        store: where a service looks.
        pairs: path, body of the request as a client of the service would send it, body of the answer.
        fingerprint: the service's: `serve.cache.key.answer_fingerprint`.
        tenants: names of API keys that shall find them; null alone where keys share answers.

    Returns:
        How many answers were handed to the store; the others are none that can be kept.
    """
    count = 0
    for route, body, answered in pairs:
        entry = make_entry(route, msgspec.json.encode(answered))
        asked = msgspec.json.encode(body)
        for tenant in tenants:
            wanted = question(route, asked, fingerprint=fingerprint, tenant=tenant, is_sampled_kept=True)
            if entry is not None and wanted is not None:
                await store.put(wanted.key, entry)
                count += 1
    return count


def chat_request(model: str, messages: Sequence[Mapping[str, str]], sampling: SamplingSpec) -> dict[str, Any]:
    """Returns the body that asks a service what a row of a batch job asked: what differs from the defaults is named.

    Raises:
        ValueError: when the job's answers were shaped by a schema, an expression or choices, or n or logprobs were
            asked for: clients spell that in too many ways for a key to be foreseen.
    """
    given, default = asdict(sampling), asdict(SamplingSpec())
    own = [name for name in _OWN if given[name] != default[name]]
    if own:
        raise ValueError(f"sampling.{own[0]} cannot be foreseen in a client's request")
    named = {name: value for name, value in given.items() if name in _ALWAYS or value != default[name]}
    return {"model": model, "messages": [dict(message) for message in messages], **named}
