from __future__ import annotations

import json
from pathlib import Path

import pytest
from cards import card, exact

from conf.errors import UserError
from pipelines.evaluate.card import read_card, write_card
from pipelines.evaluate.page import card_page, summary
from pipelines.evaluate.words import figure


def test_a_card_comes_back_as_it_was_written(tmp_path: Path):
    made = card("small")
    write_card(tmp_path, made, card_page(made))
    assert read_card(tmp_path) == read_card(tmp_path / "card.json") == made
    assert (tmp_path / "card.md").read_text().startswith("# small\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "card.md"]


def test_a_folder_without_a_card_names_what_makes_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"no card\.json there; manta evaluate model\.path="):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"card": 2}', "{}", '{"card": 1, "name": "x"}'])
def test_a_card_of_another_form_is_refused_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(UserError, match=r"card\.json") as caught:
        read_card(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_card_that_cannot_be_written_says_where_else(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"set output\.path=FOLDER"):
        write_card(tmp_path / "file", card("small"), "")


def test_the_page_tells_a_newcomer_all_there_is():
    made = {
        "step": "w4a16",
        "form": "compressed",
        "spec": {"kind": "quantize", "quantize": {"method": "gptq", "bits": 4, "skip": []}},
        "parent": "abc",
        "first_model": "demo",
    }
    parent = {"path": "/models/demo", "fingerprint": "1"}
    page = card_page(card("small", quality=exact(90, 10, parent=95), made=made, parent=parent))
    flat = " ".join(page.split())
    assert "LlamaForCausalLM, 3.50 M parameters, 7.00 MB on disk." in flat
    assert "Made from **demo** by the step `w4a16` (quantize: method=gptq, bits=4)" in flat
    assert "90.00 % (82.56 to 94.48)" in flat
    assert "-5.00 points (" in flat
    assert "| yes |" in flat
    assert "manta batch model.path=/models/small" in flat
    assert "2.00 GB" in flat
    assert "50.0 %" in flat


def test_the_page_says_what_was_left_out_and_not_measured():
    data = {**card("x").content["data"], "left_out": {"prompt_too_long": 3}, "cut_off": 2}
    page = card_page(card("small", data=data, not_measured={"number": "no expected answer has a number"}, speed=[]))
    assert "3 left out as prompt_too_long; 2 cut off; no number: no expected answer has a number." in page
    assert "tokens/s" not in page.split("## How it was measured")[0]


def test_a_name_cannot_break_a_table():
    data = card("x").content["data"]
    page = card_page(card("small", data={**data, "left_out": {}}, quality={"field.a|b": exact(1, 1)["exact"]}))
    assert r"field a\|b" in page


def test_the_summary_has_the_tables_and_the_places():
    text = summary(card("small"), ["/models/small/card.json"])
    assert text.startswith("manta evaluate: small (/models/small)")
    assert "  card     /models/small/card.json" in text
    assert "started in 9.0 s" in text


def test_cards_are_json_for_others(tmp_path: Path):
    write_card(tmp_path, card("small", quality=exact(3, 1, parent=4)), "")
    found = json.loads((tmp_path / "card.json").read_text())["quality"]["exact"]
    assert found["figure"]["value"] == 0.75
    assert found["outcomes"] == "1110"
    assert found["within_parent"] is True


def test_small_means_keep_their_digits():
    shown = {"is_share": False, "figure": {"value": 0.00001234, "low": 1e-6, "high": 0.1}}
    assert figure(shown) == "1.234e-05 (1e-06 to 0.1)"
    assert figure({**shown, "is_share": True}, {"value": -0.05, "low": -0.1, "high": 0.0}, is_signed=True) == (
        "-5.00 points (-10.00 to +0.00)"
    )
