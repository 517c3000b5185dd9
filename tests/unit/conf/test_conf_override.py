from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conf import entry
from conf.errors import UserError
from conf.schema.batch import BatchJob

LITERAL = [
    "{{ question }}",
    "{{ a }}, {{ b | join(', ') }}",
    "it's",
    "'Yes' or 'no'?",
    'say "so" to me',
    "C:\\new\\table",
    "ends in one \\",
    "ends in two \\\\",
    "a backslash before the last newline \\\n",
    "a quote after a backslash \\' here",
    "quote and backslash at the end '\\",
    "'",
    '"',
    "\\",
    "key: value",
    "a=b==c",
    "=x",
    "${{ price }}",
    "costs ${{ price }}, was ${{ old }}\\",
    "$5 {x} $ {y} $$",
    "日本語 é 🙂‍↔️ \u00a0\u2028",
    "first\nsecond\r\n\tthird\n",
    "[a, b]",
    "[not a list",
    "{a: b}",
    "(x) # no comment",
    " spaces around ",
    " ",
    "true",
    "NULL",
    "3",
    "1e3",
    "choice(a,b)",
    "range(1,3)",
    "~/x *.y ? @z +w %v",
    "{% for x in y %}{{ x['k'] }}{% endfor %}",
]


def compose(*words: str) -> BatchJob:
    return entry.compose("batch", "model=demo", "data=tickets", *words)


@pytest.mark.parametrize("text", LITERAL)
def test_a_prompt_is_taken_literally(text: str):
    assert compose(f"data.prompt={text}").data.prompt == text


@pytest.mark.parametrize("text", [r"\${{ price }}", r"\\${{ price }}"])
def test_a_backslash_before_a_price_is_kept(text: str):
    assert compose(f"data.prompt={text}").data.prompt == text


def is_plain(text: str) -> bool:
    """Whether the text is free of what the command line gives a meaning: ${...}, null, quotes around it, ???."""
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return "${" not in text and text not in ("", "null", "???") and not is_quoted


PLAIN = (st.text(alphabet="\\'\"${}[](),:= \n#ab") | st.text()).filter(is_plain)
TEXT_KEYS = ("prompt", "prompt_file", "system", "messages", "id", "answer")


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[PLAIN] * len(TEXT_KEYS)))
@example(("\\'\\\\'\\", "'\\\"", "$\\{x\\}", "\\\\", "'\\\\", "\\\n"))
def test_any_plain_text_comes_out_as_it_went_in(texts: tuple[str, ...]):
    data = compose(*(f"data.{key}={text}" for key, text in zip(TEXT_KEYS, texts, strict=True))).data
    assert tuple(getattr(data, key) for key in TEXT_KEYS) == texts


@pytest.mark.parametrize("key", ["data.system", "model.name", "output.prefix", "cluster.address", "data.input"])
def test_every_text_key_is_literal(key: str):
    job: Any = compose(f"{key}=a, 'b' {{c}}")
    group, leaf = key.split(".")
    assert getattr(getattr(job, group), leaf) == "a, 'b' {c}"


@pytest.mark.parametrize("text", ["'{{ a, b }}'", '"{{ a, b }}"'])
def test_quotes_around_the_whole_text_are_taken_off(text: str):
    assert compose(f"data.prompt={text}").data.prompt == "{{ a, b }}"


def test_quoted_null_is_text():
    assert compose("data.prompt='null'").data.prompt == "null"


@pytest.mark.parametrize("text", ["'x' and 'y'", '"x" and "y"', "'it''s'", "'a\\'", "'${{ price }}'"])
def test_text_that_only_looks_quoted_is_literal_or_an_error_that_names_the_key(text: str):
    try:
        outcome = compose(f"data.prompt={text}").data.prompt or ""
    except UserError as error:
        outcome = str(error)
    assert outcome in (text, text[1:-1]) or (outcome.count("data.prompt") and "\n" not in outcome)


def test_null_is_none_and_nothing_is_empty_text():
    assert compose("data.prompt=null").data.prompt is None
    assert compose("data.prompt=").data.prompt == ""
    assert compose("sampling.seed=1", "sampling.seed=null").sampling.seed is None


@pytest.mark.parametrize(
    "text,expected",
    [
        ("${oc.env:MANTA_TEST}", "here"),
        ("in ${oc.env:MANTA_TEST}, it's", "in here, it's"),
        ("'${oc.env:MANTA_TEST}'", "here"),
        ("${{ price }} ${oc.env:MANTA_TEST}", "${{ price }} here"),
        ("${model.name}", "demo"),
        ("${oc.env:MANTA_ABSENT,other}", "other"),
        ("${oc.env:MANTA_ABSENT,'an other'}", "an other"),
    ],
)
def test_interpolations_in_text_resolve(text: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANTA_TEST", "here")
    monkeypatch.delenv("MANTA_ABSENT", raising=False)
    assert compose(f"data.prompt={text}").data.prompt == expected


def test_an_interpolation_in_a_number_resolves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANTA_TEST", "3")
    assert compose("engine.max_num_seqs=${oc.env:MANTA_TEST}").engine.max_num_seqs == 3


@pytest.mark.parametrize(
    "word,expected",
    [
        ("engine.vllm.some_key=3", {"some_key": 3}),
        ("+engine.vllm.some_key=3", {"some_key": 3}),
        ("++engine.vllm.some_key=3", {"some_key": 3}),
        ("engine.vllm.some_key=auto", {"some_key": "auto"}),
        ("engine.vllm.some_key=null", {"some_key": None}),
        ("engine.vllm.some_key=true", {"some_key": True}),
        ("engine.vllm.some_key=[1,2]", {"some_key": [1, 2]}),
        ("engine.vllm.some_key={a: {b: 1}}", {"some_key": {"a": {"b": 1}}}),
        ("engine.vllm.a.b=1", {"a": {"b": 1}}),
        ("engine.vllm={a: 1}", {"a": 1}),
    ],
)
def test_engine_arguments_of_vllm_need_no_plus_and_keep_their_types(word: str, expected: dict[str, Any]):
    assert compose(word).engine.vllm == expected


@pytest.mark.parametrize(
    "text", ["bar", "", "3", "007", "/a:/b", "0,1", "--a=1 --b=2", "it's", "true", "1e3", "1_000", "{{ x }}", "\\\\x"]
)
def test_environment_variables_are_text_and_need_no_plus(text: str):
    assert compose(f"engine.env.FOO={text}").engine.env == {"FOO": text}


def test_all_environment_variables_can_be_given_at_once():
    assert compose("engine.env={FOO: bar}").engine.env == {"FOO": "bar"}


@pytest.mark.parametrize(
    "text,expected",
    [
        ("a.jsonl", "a.jsonl"),
        ("in/*.parquet", "in/*.parquet"),
        ("a,b", "a,b"),
        ("s3://x/y?z=1", "s3://x/y?z=1"),
        ("3", "3"),
        ("data[1].csv", "data[1].csv"),
        ("[ab]*.csv", "[ab]*.csv"),
        ("null", None),
        ("[]", []),
        ("[a.jsonl,b.jsonl]", ["a.jsonl", "b.jsonl"]),
        ("[a b, s3://x/y]", ["a b", "s3://x/y"]),
        ("['a,b',c]", ["a,b", "c"]),
        ("[${model.name}]", ["demo"]),
    ],
)
def test_input_is_text_or_a_list(text: str, expected: Any):
    assert compose(f"data.input={text}").data.input == expected


def test_two_plus_signs_set_a_key_that_exists():
    job = compose("++data.prompt={{ a, b }}", "++engine.max_num_seqs=2")
    assert (job.data.prompt, job.engine.max_num_seqs) == ("{{ a, b }}", 2)


def test_a_list_of_stop_texts():
    assert compose("sampling.stop=[Q:,'</s>',\"a, b\"]").sampling.stop == ["Q:", "</s>", "a, b"]
