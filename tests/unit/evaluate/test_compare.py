from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cards import card, exact

from conf.cli import main
from conf.errors import UserError
from pipelines.evaluate.card import Card, write_card
from pipelines.evaluate.scatter import points, scatter_page, span
from pipelines.evaluate.table import choose_metric, compared, markdown, notes_of


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_row_for_each_card_and_differences_to_the_first():
    cards = [card("big"), card("small", 85, 15, tokens_per_s=150.0)]
    text = markdown(compared(cards, "exact"))
    head, _, first, second = cells(text)
    assert (head[2], head[3]) == ("exact match (95 % interval)", "difference to big")
    assert (first[0], first[3]) == ("big", "-")
    assert second[3].startswith("-5.00 points (")
    assert (first[9], second[9]) == ("1.00", "1.50")
    assert text.count("\n\n") == 0  # nothing is to be said of them


def test_rows_of_both_cards_are_compared_one_by_one():
    (_, row) = compared([card("big"), card("small", 85, 15)], "exact")
    assert row["difference"]["is_paired"]
    assert row["difference"]["p"] == pytest.approx(2 / 32)


def test_cards_of_other_rows_are_marked_and_not_subtracted():
    other = card("small", 85, 15)
    other.content["data"] = {**other.content["data"], "key": "others"}
    rows = compared([card("big"), other], "exact")
    assert rows[1]["difference"] is None
    text = markdown(rows)
    assert "†" in cells(text)[3][2]
    assert "† measured on other rows, prompts or sampling: not comparable with big" in text


def test_cards_of_other_machines_are_marked_and_have_no_ratio():
    rows = compared([card("big"), card("small", speed_key="another")], "exact")
    text = markdown(rows)
    assert rows[1]["speed_up"] is None
    assert cells(text)[3][9] == "-"
    assert "‡ another machine, engine or batch" in text
    assert rows[1]["difference"] is not None  # quality is no matter of the machine


def test_figures_of_the_fake_engine_say_so():
    assert "§ of the fake engine" in "\n".join(notes_of(compared([card("x", is_fake=True)], "exact")))


def test_without_the_same_number_of_outcomes_intervals_are_wider():
    (_, row) = compared([card("big"), card("small", 80, 19)], "exact")
    assert row["difference"]["is_paired"] is False
    assert row["difference"]["p"] is None


def test_the_figure_is_a_share_that_all_have_or_the_one_asked_for():
    one = card("a", quality={"field.x": exact(1, 1)["exact"], "exact": exact(1, 1)["exact"]})
    two = card("b")
    assert choose_metric([one, two], None) == "exact"
    assert choose_metric([one], "field.x") == "field.x"
    with pytest.raises(UserError, match=r"--metric field\.x: the card of b lacks it .*all have exact"):
        choose_metric([one, two], "field.x")
    with pytest.raises(UserError, match="no figure of quality in common"):
        choose_metric([card("a", quality={"number": exact(1, 1)["exact"]}), two], None)


def test_a_card_without_a_speed_has_a_row_and_no_point():
    rows = compared([card("big"), card("mute", speed=[])], "exact")
    assert cells(markdown(rows))[3][8] == "-"
    made, _, _ = points(rows)
    assert [point.name for point in made] == ["big"]


def test_points_lie_in_the_plot_better_ones_up_and_right():
    rows = compared([card("big", 99, 1), card("small", 60, 40, tokens_per_s=300.0)], "exact")
    (big, small), x, y = points(rows)
    assert small.x > big.x
    assert small.y > big.y  # SVG counts downwards
    for point in (big, small):
        assert x.begin <= point.x_low <= point.x <= point.x_high <= x.end
        assert y.end <= point.y_high <= point.y <= point.y_low <= y.begin
    assert y.high <= 1.0


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1.0, 1.0 + 1e-12], [1e-9, 1e9]])
def test_any_values_have_an_axis_with_marks(values: list[float]):
    axis = span(values, 0.0, 100.0, 0.0, None)
    assert axis.low < axis.high
    assert 1 <= len(axis.ticks()) <= 14
    assert all(0 <= axis.place(value) <= 100 for value in values)


def test_the_plot_is_a_page_of_its_own_in_which_names_are_only_text():
    page = scatter_page(compared([card("<script>x</script>"), card("small")], "exact"), ["a note"])
    assert "<script" not in page
    assert "a note" in page
    assert "http" not in page.replace("http-equiv", "")
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    drawn = ET.fromstring(svg)
    assert len(drawn.findall(".//circle")) == 2


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    def saved(made: Card) -> str:
        (tmp_path / made.name).mkdir()
        write_card(tmp_path / made.name, made, "")
        return str(tmp_path / made.name)

    return [saved(card("big")), saved(card("small", 85, 15))]


def test_the_verb_prints_a_table_or_json_and_writes_the_plot(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", *two, "--plot", str(tmp_path / "plot.html")]) == 0
    assert [row[0] for row in cells(capsys.readouterr().out)[2:]] == ["big", "small"]
    assert "<circle" in (tmp_path / "plot.html").read_text()
    assert main(["compare", f"{two[0]}/card.json", two[1], "--json", "--metric", "exact"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["big", "small"]


@pytest.mark.parametrize(
    "words,said",
    [
        (["nowhere"], "card=nowhere: no such folder, and no model of that name"),
        (["dmeo"], "did you mean 'demo'?"),
        (["hf"], "card=hf: no such folder"),
        (["{two}", "--metric", "exat"], "--metric exat: the card of big lacks it; did you mean 'exact'?"),
        (["{two}", "--plot", "/nowhere/plot.html"], "--plot /nowhere/plot.html: cannot be written"),
        (["{empty}"], "no card.json there"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    filled = [word.format(two=two[0], empty=tmp_path) for word in words]
    assert main(["compare", *filled]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err
