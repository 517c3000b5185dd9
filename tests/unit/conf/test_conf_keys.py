from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum, EnumType
from typing import Any, get_type_hints

import pytest

from conf import entry
from conf.help import help_text
from conf.keys import keys_of
from conf.schema.batch import BatchJob
from conf.schema.serve import ServeJob

KEYS = {key.name: key for key in keys_of(BatchJob)}


class Colour(Enum):
    red = "r"
    blue = "b"


@dataclass(kw_only=True)
class Inner:
    """Its own words are no field's."""

    plain: int = 1
    said: str | None = None
    """Said
    over two lines."""
    colour: Colour = Colour.red
    last: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    """About a group, not about a key."""
    bag: dict[str, Any] = field(default_factory=dict)


def documented(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each field of a schema that a string follows in the source, with that string."""
    found = dict(re.findall(r'\n    (\w+): [^\n]+\n    """(.*?)"""', inspect.getsource(cls), re.DOTALL))
    for item in fields(cls):
        kind = get_type_hints(cls)[item.name]
        if is_dataclass(kind):
            yield from documented(kind, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        elif item.name in found:
            yield f"{prefix}{item.name}", " ".join(found[item.name].split())


def test_leaves_come_in_the_order_of_the_fields():
    assert [key.name for key in keys_of(Outer)] == ["inner.plain", "inner.said", "inner.colour", "inner.last", "bag"]


def test_the_string_under_a_field_is_its_documentation():
    assert {key.name: key.doc for key in keys_of(Outer) if key.doc} == {"inner.said": "Said over two lines."}


def test_choices_that_say_nothing_are_explained_by_their_class():
    policy = next(key for key in keys_of(ServeJob) if key.name == "router.policy")
    assert policy.doc.startswith("The rule that chooses a replica. ``prefix`` weighs")


def test_type_names_are_as_people_write_them():
    assert [key.type_name for key in keys_of(Outer)] == ["int", "str|null", "red|blue", "list[str]", "dict[str, Any]"]


@pytest.mark.parametrize("cls", list(entry.SCHEMAS.values()))
def test_every_documented_field_of_a_job_has_its_documentation(cls: type):
    expected = dict(documented(cls))
    assert len(expected) > 5
    said = {key.name: key.doc for key in keys_of(cls) if key.doc}
    of_choices = {key.name for key in keys_of(cls) if key.name not in expected and isinstance(key.type, EnumType)}
    assert {name: doc for name, doc in said.items() if name not in of_choices} == expected


def test_every_group_has_keys():
    assert {name.split(".")[0] for name in KEYS} >= set(entry.groups("batch"))


@pytest.mark.parametrize(
    "name,type_name,is_text,is_open",
    [
        ("data.input", "Any", True, False),
        ("data.prompt", "str|null", True, False),
        ("model.path", "str", True, False),
        ("data.apply_chat_template", "bool|null", False, False),
        ("engine.device", "auto|cpu|cuda", False, False),
        ("engine.vllm", "dict[str, Any]", False, True),
        ("engine.env", "dict[str, str]", False, True),
        ("engine.fault.die_after", "int", False, False),
        ("sampling.stop", "list[str]", False, False),
        ("sampling.seed", "int|null", False, False),
    ],
)
def test_keys_of_the_batch_job(name: str, type_name: str, is_text: bool, is_open: bool):
    key = KEYS[name]
    assert (key.type_name, key.is_text, key.is_open) == (type_name, is_text, is_open)


def help_defaults(name: str) -> dict[str, str]:
    lines = re.findall(r"^  ([\w.]+)=(.*)  \([^()]*\)$", help_text(name, "what it does"), re.MULTILINE)
    return dict(lines)


@pytest.mark.parametrize("name", list(entry.SCHEMAS))
def test_help_lists_every_key_group_option_and_documentation(name: str):
    text = help_text(name, "what it does")
    assert text.startswith(f"manta {name}: what it does")
    assert list(help_defaults(name)) == [key.name for key in keys_of(entry.SCHEMAS[name])]
    for group in entry.groups(name):
        assert f"  {group}={'|'.join(entry.options(group))}\n" in text
    flat = " ".join(text.split())
    assert all(key.doc in flat for key in keys_of(entry.SCHEMAS[name]))


@pytest.mark.parametrize("name", list(entry.SCHEMAS))
def test_no_key_is_without_a_sentence(name: str):
    assert [key.name for key in keys_of(entry.SCHEMAS[name]) if not key.doc.endswith((".", ")", ":"))] == []


def test_help_names_the_types():
    text = help_text("batch", "")
    assert "  engine.device=auto  (auto|cpu|cuda)\n" in text
    assert "  data.input=???  (Any)\n" in text
    assert "  sampling.seed=null  (int|null)\n" in text


def test_help_of_a_default_with_many_keys_in_it_names_its_parts():
    assert "  recipe.steps={quantize: ...}  (dict[str, StepSpec])\n" in help_text("optimize", "")


def test_help_fits_its_width():
    text = help_text("batch", "", width=60)
    assert max(len(line) for line in text.splitlines() if line.startswith("      ")) <= 60


def test_the_defaults_in_the_help_are_the_ones_that_hold():
    defaults = [f"{key}={value}" for key, value in help_defaults("batch").items() if value != "???"]
    needed = ["model.path=m", "data.input=d"]
    assert entry.compose("batch", *needed, *defaults) == entry.compose("batch", *needed)
