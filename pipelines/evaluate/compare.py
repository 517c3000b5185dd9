"""`manta compare A B C`: cards side by side, and a plot of quality against speed. Reads; starts nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from conf.errors import UserError
from pipelines.evaluate.card import Card, read_card
from pipelines.evaluate.scatter import scatter_page
from pipelines.evaluate.table import choose_metric, compared, markdown, notes_of
from pipelines.evaluate.trial import find_folder


def run(words: list[str]) -> int:
    """Runs the verb.

    Args:
        words: folders, card files or names of models, and options.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: when one has no card, or they have nothing in common.
    """
    parser = argparse.ArgumentParser(
        prog="manta compare",
        description="Puts the cards that manta evaluate wrote side by side; differences are to the first.",
    )
    parser.add_argument("cards", nargs="+", metavar="CARD", help="a model's folder or name, or a card.json")
    parser.add_argument("--metric", metavar="NAME", help="the figure of quality, such as exact or field.intent")
    parser.add_argument("--plot", metavar="FILE", help="write a page with a plot of quality against speed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    try:
        options = parser.parse_args(words)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    cards = [_find(text) for text in options.cards]
    rows = compared(cards, choose_metric(cards, options.metric))
    if options.plot is not None:
        if not any(row["full"] for row in rows):
            raise UserError(f"--plot {options.plot}: no card has a speed (they were made with speed.runs=0)")
        try:
            page = scatter_page(rows, notes_of(rows))
            Path(options.plot).expanduser().write_text(page, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--plot {options.plot}: cannot be written: {error.strerror}") from error
    print(json.dumps(rows, indent=2, ensure_ascii=False) if options.json else markdown(rows))
    return 0


def _find(text: str) -> Card:
    path = Path(text).expanduser()
    return read_card(path if path.is_file() else Path(find_folder(text, "card")))
