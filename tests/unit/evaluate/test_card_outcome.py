from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from conf.schema.evaluate import QualitySpec
from pipelines.evaluate.outcome import find_number, has_all_fields, is_exact, read_object, right_fields

SPEC = QualitySpec()


@pytest.mark.parametrize(
    "text,number",
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("so 5 and then 12.", "12"),
        ("The price is $1,250.50", "1250.5"),
        ("#### -3 degrees, at 5 o'clock", "-3"),
        ("It was 6 before. #### none", "6"),
        ("first #### 2, no: #### 4", "4"),
        ("no digits", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None):
    assert find_number(text, SPEC) == (None if number is None else Decimal(number))


def test_another_pattern_and_no_marker():
    spec = QualitySpec(number_pattern=r"total: (\d+)", number_marker="")
    assert find_number("total: 12, of 30 #### 4", spec) == 12
    assert find_number("30", spec) is None


def test_numbers_are_compared_as_numbers():
    assert find_number("#### 18.00", SPEC) == find_number("makes 18", SPEC)


def test_every_answer_of_gsm8k_has_the_number_after_its_mark(gsm8k: Path):
    answers = [json.loads(line)["answer"] for line in gsm8k.read_text().splitlines()]
    assert len(answers) == 1319
    for answer in answers:
        expected = answer.rpartition("####")[2].strip()
        assert find_number(answer, SPEC) == Decimal(expected.replace(",", ""))
        # of a model that does not write the mark, the last number of the reasoning
        assert find_number(f"The answer is {expected}.", SPEC) == find_number(answer, SPEC)


def test_exact_means_the_text_but_for_white_space_around_it():
    assert is_exact(" yes\n", "yes")
    assert not is_exact("Yes", "yes")


@pytest.mark.parametrize(
    "text,found",
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("[1]", None),
        ("{", None),
        ("none", None),
        ("1", None),
    ],
)
def test_objects_are_found_in_answers(text: str, found: dict | None):
    assert read_object(text) == found


def test_fields_are_right_one_by_one():
    expected = {"intent": "refund", "amount": 5, "vip": True, "order": None}
    answer = '{"order": null, "intent": " refund", "amount": 5.0, "vip": 1, "more": 2}'
    assert right_fields(answer, expected) == {"intent": True, "amount": True, "vip": False, "order": True}
    assert right_fields("no JSON", {"intent": "refund", "order": None}) == {"intent": False, "order": False}
    assert not has_all_fields(answer, expected)


def test_all_fields_are_those_and_no_others_in_any_order():
    expected = {"a": {"b": [1, "x"]}, "c": "d"}
    assert has_all_fields('{"c": "d", "a": {"b": [1.0, "x"]}}', expected)
    assert not has_all_fields('{"c": "d", "a": {"b": [1, "y"]}}', expected)
    assert not has_all_fields('{"c": "d", "a": {"b": [1, "x"]}, "e": null}', expected)
    assert not has_all_fields("{}", expected)
