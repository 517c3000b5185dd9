"""From a row to messages: strict, sandboxed, and a row's mistake costs that row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf.errors import UserError
from conf.schema.data import DataSpec
from pipelines.batch.template import MessageBuilder
from serve.engine.errors import RequestRejected

ROW = {"question": "why?", "n": 3, "none": None, "list": ["a", "ü"], "object": {"k": "v"}, "my col": "spaced"}


def build(prompt: str | None = None, columns: list[str] | None = None, **spec: Any) -> MessageBuilder:
    return MessageBuilder(DataSpec(input="x", prompt=prompt, **spec), list(ROW) if columns is None else columns)


def render(prompt: str, **spec: Any) -> str:
    builder = build(prompt, **spec)
    return builder.messages({name: ROW[name] for name in builder.columns})[-1]["content"]


def rejection(builder: MessageBuilder, row: dict[str, Any]) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        builder.messages(row)
    assert "\n" not in caught.value.message
    return caught.value


def refusal(prompt: str | None = None, **spec: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(prompt, **spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "prompt, text",
    [
        ("Q: {{ question }} ({{ n }})", "Q: why? (3)"),
        ("{{ row['my col'] }} {{ row.question }}", "spaced why?"),
        ("{% for x in list %}[{{ x }}]{% endfor %}", "[a][ü]"),
        ("{% if none is none %}nothing{% else %}{{ none }}{% endif %}", "nothing"),
        ("{{ list | tojson }}{{ object | tojson }}{{ none | tojson }}", '["a", "ü"]{"k": "v"}null'),
        ("{{ object.k }}", "v"),
        ("{% set x = n + 1 %}{{ x }}", "4"),
        ("{{ question | upper }}", "WHY?"),
        ("constant", "constant"),
        ("<b>{{ '<&>' }}</b>", "<b><&></b>"),
    ],
)
def test_a_template_renders(prompt: str, text: str) -> None:
    assert render(prompt) == text


def test_a_template_reads_only_the_columns_that_it_names() -> None:
    assert build("{{ question }}{% if n %}{% endif %}").columns == ["question", "n"]
    assert build("{{ row.n }}").columns == list(ROW)


def test_a_column_named_row_is_that_column() -> None:
    assert build("{{ row }}", columns=["row"]).messages({"row": "own"})[0]["content"] == "own"


@pytest.mark.parametrize("name", ["range", "dict", "namespace", "lipsum", "loop", "caller"])
def test_a_column_may_have_a_name_that_jinja_uses(name: str) -> None:
    builder = build("{{ " + name + " }}", columns=[name])
    assert builder.columns == [name]
    assert builder.messages({name: "own"})[0]["content"] == "own"


@pytest.mark.parametrize("key", ["prompt", "system"])
def test_a_missing_column_is_refused_with_the_nearest_name(key: str) -> None:
    message = refusal(**{"prompt": "x", key: "{{ qestion }}"})
    assert message.startswith(f"data.{key} names the column 'qestion'")
    assert "did you mean 'question'?" in message


@pytest.mark.parametrize("prompt", ["a\n{{ question", "a\n{% if %}", "a\n{% for %}", "a\n{{ question | nofilter }}"])
def test_a_syntax_error_names_its_line(prompt: str) -> None:
    assert refusal(prompt).startswith("data.prompt: line 2 of the template: ")


@pytest.mark.parametrize("prompt", ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}"])
def test_a_template_that_needs_another_one_is_refused_before_any_row(prompt: str) -> None:
    refusal(prompt)


@pytest.mark.parametrize(
    "prompt, says",
    [
        ("{{ none }}", "a null value"),
        ("{{ list }}", "a list"),
        ("{{ object }}", "a dict"),
        ("{{ object.missing }}", "missing"),
        ("{{ row['other'] }}", "other"),
        ("{{ n / 0 }}", "ZeroDivisionError"),
        ("{{ n + question }}", "TypeError"),
    ],
)
def test_what_cannot_be_printed_is_the_rows_error(prompt: str, says: str) -> None:
    builder = build(prompt)
    rejected = rejection(builder, {name: ROW[name] for name in builder.columns})
    assert rejected.error == "template_error"
    assert says in rejected.message


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ ().__class__.__mro__ }}",
        "{{ question.__class__.__base__.__subclasses__() }}",
        "{{ question['__class__'] }}",
        "{{ question | attr('__class__') }}",
        "{{ '{0.__class__}'.format(question) }}",
        "{{ list.append('x') }}",
        "{{ row.update({'n': 4}) }}",
        "{{ range.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ range(10 ** 9) | length }}",
    ],
)
def test_the_sandbox_refuses_an_escape_and_spares_the_row(prompt: str) -> None:
    builder = build(prompt)
    row = {name: ROW[name] for name in builder.columns}
    assert rejection(builder, row).error == "template_error"
    assert ROW["list"] == ["a", "ü"]
    assert ROW["n"] == 3


@pytest.mark.parametrize("prompt", ["", "  ", "\n", "{% if false %}x{% endif %}"])
def test_an_empty_prompt_is_the_rows_error(prompt: str) -> None:
    assert rejection(build(prompt), {}).error == "empty_prompt"


def test_a_system_message_comes_first_and_an_empty_one_not_at_all() -> None:
    builder = build("{{ question }}", system="{% if n %}be {{ n }}{% endif %}")
    assert builder.messages({"question": "q", "n": 3}) == [
        {"role": "system", "content": "be 3"},
        {"role": "user", "content": "q"},
    ]
    assert [message["role"] for message in builder.messages({"question": "q", "n": 0})] == ["user"]


def test_a_prompt_file_is_a_template_in_utf8(tmp_path: Path) -> None:
    path = tmp_path / "p.jinja"
    path.write_bytes("Grüße: {{ question }}\n".encode())
    builder = build(prompt_file=str(path))
    assert builder.messages({"question": "q"})[0]["content"] == "Grüße: q"


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{{ nothere }}", b"{{"])
def test_a_prompt_file_that_is_no_template_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.jinja"
    if content is not None:
        path.write_bytes(content)
    assert refusal(prompt_file=str(path)).startswith("data.prompt_file")


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    "value",
    [[USER], '[{"role": "user", "content": "q"}]', [{**USER, "name": None}]],
)
def test_messages_come_from_a_column_of_lists_or_json_text(value: Any) -> None:
    builder = build(columns=["chat", "other"], messages="chat")
    assert builder.columns == ["chat"]
    assert builder.messages({"chat": value}) == [USER]


def test_a_message_may_have_tool_calls_instead_of_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    got = build(columns=["chat"], messages="chat").messages({"chat": [USER, call]})
    assert got == [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]


@pytest.mark.parametrize(
    "value, error",
    [
        (None, "wrong_type"),
        (3, "wrong_type"),
        ({"role": "user", "content": "q"}, "wrong_type"),
        ("not json", "wrong_type"),
        ('{"role": "user"}', "wrong_type"),
        ("", "wrong_type"),
        ("[" * 100_000 + "]" * 100_000, "wrong_type"),
        ([], "empty_prompt"),
        ("[]", "empty_prompt"),
        (["q"], "wrong_type"),
        ([None], "wrong_type"),
        ([{"content": "q"}], "wrong_type"),
        ([{"role": None, "content": "q"}], "wrong_type"),
        ([{"role": 1, "content": "q"}], "wrong_type"),
        ([{"role": "user"}], "wrong_type"),
        ([{"role": "user", "content": None}], "wrong_type"),
        ([{"role": "user", "content": 5}], "wrong_type"),
    ],
)
def test_messages_of_a_wrong_shape_are_the_rows_error(value: Any, error: str) -> None:
    assert rejection(build(columns=["chat"], messages="chat"), {"chat": value}).error == error


def test_a_missing_messages_column_is_refused() -> None:
    assert refusal(columns=["chat"], messages="chats").startswith("data.messages names the column 'chats'")
