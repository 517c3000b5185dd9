"""Which card still holds, and which way of two is nearer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from bench_optimize import is_measured  # noqa: E402
from bench_rounding import Found  # noqa: E402


def write_card(path: Path, fingerprint: str, asked: int) -> Path:
    path.write_text(json.dumps({"fingerprint": fingerprint, "data": {"asked": asked}}))
    return path


@pytest.mark.parametrize("fingerprint,asked,holds", [("a", 600, True), ("b", 600, False), ("a", 300, False)])
def test_a_card_holds_while_its_model_and_its_rows_are_the_same(
    tmp_path: Path, fingerprint: str, asked: int, holds: bool
):
    (tmp_path / "artifact.json").write_text(json.dumps({"fingerprint": "a"}))
    assert is_measured(write_card(tmp_path / "card.json", fingerprint, asked), tmp_path, 600) is holds


def test_a_model_without_a_card_is_measured_and_a_named_one_by_its_rows(tmp_path: Path):
    card = tmp_path / "card.json"
    assert not is_measured(card, "demo", 600)
    assert is_measured(write_card(card, "a", 600), "demo", 600)
    assert not is_measured(card, "demo", 4800)


def test_the_nearer_of_two_ways_has_less_than_none_to_the_other():
    right = np.array([True] * 90 + [False] * 10)
    wrong = np.array([True] * 70 + [False] * 30)
    near = Found(is_right=right, nats=np.linspace(0.1, 0.2, 100), from_teacher=None)
    far = Found(is_right=wrong, nats=np.linspace(0.1, 0.2, 100) + 0.05, from_teacher=None)
    less = near.less(far)
    assert less["nats"]["value"] == pytest.approx(-0.05)
    assert less["nats"]["high"] < 0 < less["exact"]["low"]
    assert less["exact"]["value"] == pytest.approx(0.2)
    assert "nats_from_teacher" not in less
