"""The contract's checks of grammars, for engines that read them: the fake does not."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from contract_bench import Bench

from conf.schema.sampling import SamplingSpec
from serve.engine.protocol import Completion, Rejection

TICKET = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["refund", "exchange", "question"]},
        "urgent": {"type": "boolean"},
        "order": {"type": "integer", "minimum": 0, "maximum": 99999},
    },
    "required": ["intent", "urgent", "order"],
    "additionalProperties": False,
}


async def check_grammar_of_a_json_schema_is_kept(bench: Bench) -> None:
    import jsonschema

    sampling = SamplingSpec(max_tokens=60, temperature=1.0, seed=5, json_schema=json.dumps(TICKET))
    for outcome in await bench.ask(*(bench.request(index, sampling) for index in range(6))):
        assert isinstance(outcome, Completion)
        assert outcome.finish_reason == "stop", outcome.text  # no tokens go to white space without end
        jsonschema.validate(json.loads(outcome.text), TICKET)


async def check_grammar_of_a_regex_is_kept(bench: Bench) -> None:
    sampling = SamplingSpec(max_tokens=40, temperature=1.0, seed=5, regex=r"[A-Z]{3}-\d{4}")
    outcomes = await bench.ask(*(bench.request(index, sampling) for index in range(6)))
    for outcome in outcomes:
        assert isinstance(outcome, Completion)
        assert re.fullmatch(sampling.regex or "", outcome.text), outcome.text


async def check_grammar_of_a_choice_is_kept(bench: Bench) -> None:
    choice = ["refund", "exchange", 'say "no"']
    sampling = SamplingSpec(max_tokens=40, temperature=2.0, seed=5, choice=choice, n=8)
    outcomes = await bench.ask(*(bench.request(index, sampling) for index in range(4)))
    texts = {sample.text for o in outcomes if isinstance(o, Completion) for sample in o.samples}
    assert texts <= set(choice), texts
    assert len(texts) > 1, texts


async def check_grammar_that_is_none_is_the_rows_fault(bench: Bench) -> None:
    bad = {
        "json": SamplingSpec(json_schema="{"),
        "deep": SamplingSpec(json_schema='{"properties": {"a": ' * 2000 + "{}" + "}}" * 2000),
        "number": SamplingSpec(json_schema="5"),
        "type": SamplingSpec(json_schema='{"type": "strin"}'),
        "pointer": SamplingSpec(json_schema='{"$ref": "#/nowhere"}'),
        "remote": SamplingSpec(json_schema='{"$ref": "https://example.invalid/a.json"}'),
        "endless": SamplingSpec(json_schema='{"$ref": "#"}'),
        "unsupported": SamplingSpec(json_schema='{"type": "integer", "multipleOf": 3}'),
        "open": SamplingSpec(regex="("),
        "lookahead": SamplingSpec(regex="(?=a)b"),
        "nul": SamplingSpec(regex="a\x00"),
        "nothing": SamplingSpec(regex=r"[^\s\S]"),
        "surrogate": SamplingSpec(choice=["\ud800"]),
    }
    requests = [replace(bench.request(0, sampling), id=name) for name, sampling in bad.items()]
    outcomes = {o.request_id: o for o in await bench.ask(*requests, bench.request(1))}
    assert isinstance(outcomes.pop("r1"), Completion)
    errors = {name: o.error if isinstance(o, Rejection) else o for name, o in outcomes.items()}
    assert errors == dict.fromkeys(bad, "bad_grammar")
    await bench.engine.health()
    assert bench.engine.stats().running == 0
