"""An answer grows token by token, and ends where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from conf.schema.sampling import SamplingSpec
from serve.engine.onnx.answer import Answer
from serve.engine.protocol import Request

END = 2


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return Tokenizer.from_file(str(demo_model / "tokenizer.json"))


def make(tokenizer: Any, room: int = 100, **fields: Any) -> Answer:
    request = Request(id="x", token_ids=[1, 5], sampling=SamplingSpec(**fields))
    return Answer(request, 0, room, tokenizer, {END})


def feed(answer: Answer, token_ids: list[int]) -> None:
    for token in token_ids:
        if answer.finish_reason is None:
            answer.take(token, None, [])


def test_the_text_is_what_the_tokenizer_says_of_all_tokens(tokenizer: Any) -> None:
    text = '{"intent":"€ łódź 🙂 two  spaces\n"}'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    answer = make(tokenizer)
    feed(answer, [*ids, END])
    assert answer.text == text
    assert (answer.finish_reason, len(answer.token_ids)) == ("stop", len(ids) + 1)


def test_it_ends_when_its_room_is_full_and_not_at_the_end_it_is_told_to_ignore(tokenizer: Any) -> None:
    answer = make(tokenizer, room=3, ignore_eos=True)
    feed(answer, [END, END, END, END])
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 3)


@pytest.mark.parametrize(
    "stops, wanted", [(["y_p"], "batter"), (["zz", "ery", "att"], "b"), (["nowhere"], "battery_problem")]
)
def test_the_first_stop_text_ends_it_and_is_no_part_of_it(tokenizer: Any, stops: list[str], wanted: str) -> None:
    ids = [tokenizer.token_to_id(letter) for letter in "battery_problem"]
    assert None not in ids
    answer = make(tokenizer, stop=stops)
    seen = ""
    for token in [*ids, END]:
        feed(answer, [token])
        assert answer.text[: answer.settled].startswith(seen)  # nothing that was told is taken back
        seen = answer.text[: answer.settled]
    assert answer.text == seen == wanted
    assert answer.finish_reason == "stop"


def test_half_a_character_waits_for_the_other_half(tokenizer: Any) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False).ids
    assert len(ids) > 1
    answer = make(tokenizer)
    feed(answer, ids[:1])
    assert answer.text == ""
    feed(answer, ids[1:])
    assert answer.text == "🙂"


def test_logprobs_name_special_tokens_too(tokenizer: Any) -> None:
    request = Request(id="x", token_ids=[1], sampling=SamplingSpec(logprobs=1))
    answer = Answer(request, 0, 4, tokenizer, {END})
    answer.take(END, -0.5, [(END, -0.5)])
    (place,) = answer.sample().logprobs or ()
    assert place.token == "<|eos|>"
    assert place.top == (("<|eos|>", -0.5),)
    assert answer.text == ""
