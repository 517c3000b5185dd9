from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from bench_semantic import interval, judge, replay
from semantic_texts import Text, make_questions, make_tickets, read_texts


def texts(labels: str, families: str | None = None) -> list[Text]:
    pairs = zip(labels, families or labels, strict=True)
    return [Text(text=f"text {at}", label=label, family=family) for at, (label, family) in enumerate(pairs)]


def test_a_hit_is_right_or_wrong_by_its_label_and_what_hits_is_not_kept():
    vectors = np.array([[1, 0], [0.99, 0.14], [0.95, 0.31], [0, 1]], np.float32)
    found = replay(texts("aaba"), vectors @ vectors.T, 0.94)
    # the second one hits the first, and so does the third, though the second is nearer: only the first is kept
    assert (found["hits"], found["wrong"], found["possible"], found["recall"]) == (2, 1, 2, 0.5)
    assert found["wrong_of_hits"][0] == 0.5
    assert found["wrong_of_lookups"][0] == 0.25


def test_an_interval_holds_the_rate_and_is_narrower_for_more():
    low, high = interval(2, 200)
    assert low < 0.01 < high < 0.04
    assert interval(20, 2000)[1] < high
    assert interval(0, 0) == (0.0, 1.0)


def test_a_threshold_is_chosen_on_one_half_and_judged_on_the_other():
    rng = np.random.default_rng(0)
    labels = [f"{family} {number}" for family in "abcdef" for number in range(20)]
    middles = {label: rng.normal(size=64) for label in labels}
    some = [Text(text="x", label=label, family=label[0]) for label in labels for _ in range(4)]
    vectors = np.array([middles[text.label] + 0.15 * rng.normal(size=64) for text in some], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = judge(some, vectors, True, seed=1, limit=0.01)
    assert found["chosen"] is not None
    assert found["held_out"]["wrong"] == 0
    assert found["held_out"]["recall"] > 0.9
    alike = np.ones_like(vectors) / 8  # an embedding model that knows one direction
    assert judge(some, alike, True, seed=1, limit=0.01)["chosen"] is None


def test_what_is_made_is_the_same_each_time_and_has_neighbours_of_one_wording():
    for make in (make_questions, make_tickets):
        made = make()
        assert made == make()
        assert len({text.text for text in made}) == len(made) > len({text.label for text in made}) > 100


def test_labelled_lines_are_read(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ({"text": "a", "label": 1}, {"question": "b", "answer": "c"})))
    assert [(text.text, text.label) for text in read_texts(path)] == [("a", "1"), ("b", "question 1")]
    path.write_text('{"text": "a"}')
    with pytest.raises(KeyError):
        read_texts(path)
