# SPDX-License-Identifier: Apache-2.0
"""Seeded generator of support tickets and the JSON answers that belong to them.

A row is a ticket text and an answer, a compact JSON object with these keys in this order:

| key | value |
| --- | --- |
| intent | one of the labels in `[intents]` of demo/phrases.toml |
| product | one of the labels in `[products]`, or null when the ticket names no product of its own |
| priority | "urgent", "high", "normal" (no cue in the text) or "low" |
| customer | the writer's name exactly as in the text, or null when only other people are named |
| order | the order id exactly as in the text, such as "KX-48213", or null |
| amount | the money amount with two decimals and a point, such as "129.90" or "1290.00", or null |

The text also carries other people's names, other order ids, other amounts and other products, which are not copied.
Sentences, phrasings, names, layouts and numbers of the held-out split never occur in the training split.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import random
import re
import string
import tomllib
from typing import Any

FIELDS = ("intent", "product", "priority", "customer", "order", "amount")
SPLITS = ("train", "held")
DEMO_SEED = 20
DEMO_ROWS = 1200
DEMO_DIR = pathlib.Path(__file__).resolve().parent.parent / "demo"

# Marks values that must reach the answer unchanged, so that noise leaves them alone.
_KEEP = "\x00"
_keep = f"{_KEEP}{{}}{_KEEP}".format
_NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuiopqsdfghjklaxcvbnmz", strict=True))
_TOKEN = re.compile(r"[A-Za-z]{4,}")


@functools.cache
def load_phrases() -> dict[str, Any]:
    """Reads the phrase pools.

    Returns:
        The parsed demo/phrases.toml; treat it as read-only.

    Raises:
        FileNotFoundError: demo/phrases.toml is missing.
    """
    return tomllib.loads((DEMO_DIR / "phrases.toml").read_text(encoding="utf-8"))


@functools.cache
def _frame_words() -> list[str]:
    """Returns the plain words of the training sentences, in order."""
    frames = load_phrases()["frames"].values()
    return [word for frame in frames for text in frame["train"] for word in text.split() if word.isalpha()]


def person_name(rng: random.Random, split: str) -> str:
    """Draws a person's name: an ordinary first name and a surname made of syllables.

    Args:
        rng: Source of randomness.
        split: "train" or "held"; the two never share a surname.

    Returns:
        A name such as "Anna Torvik".
    """
    names = load_phrases()["names"]
    parts = names["syllables"]
    while True:
        picks = [rng.randrange(len(parts)) for _ in range(rng.choice((2, 2, 3)))]
        surname = "".join(parts[i] for i in picks)
        # Some surnames can be spelled by several pick lists, so the split looks at the letters.
        if (sum(surname.encode()) % 6 == 0) == (split == "held"):
            break
    first = rng.choice(names[split])
    if split == "train":
        # Made-up first names teach copying in general and not a fixed list.
        made_up = (
            "".join(rng.choices(parts, k=2)),
            "".join(rng.choices(string.ascii_lowercase + "áéíöüñ", k=rng.randrange(3, 9))),
            rng.choice(_frame_words())[:5] + rng.choice((rng.choice(parts)[:2], rng.choice("aeioré"))),
            _misspell(first, rng),
        )
        made = rng.choice((first, *made_up)).capitalize()
        first = first if made in names["held"] else made
    if rng.random() < 0.08:
        first = f"{first} {rng.choice(string.ascii_uppercase)}."
    return f"{first} {surname.capitalize()}"


def order_id(rng: random.Random, split: str) -> str:
    """Draws an order id such as "KX-48213"; the splits differ in the digit sum modulo 7.

    Args:
        rng: Source of randomness.
        split: "train" or "held".

    Returns:
        Two or three capitals, a hyphen and four to six digits.
    """
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.choice((2, 2, 2, 3))))
    while True:
        digits = "".join(rng.choices(string.digits, k=rng.choice((4, 5, 5, 5, 6))))
        if (sum(map(int, digits)) % 7 == 0) == (split == "held"):
            return f"{letters}-{digits}"


def money(rng: random.Random, split: str) -> tuple[str, str]:
    """Draws a money amount; the splits differ in the number of cents modulo 7.

    Args:
        rng: Source of randomness.
        split: "train" or "held".

    Returns:
        The normalised amount (two decimals, point) and one way of writing it.
    """
    while True:
        whole = rng.randrange(1000, 4000) if rng.random() < 0.25 else rng.randrange(3, 1000)
        cents = rng.choice((0, 0, 50, 90, 95, 99, rng.randrange(100)))
        if ((whole * 100 + cents) % 7 == 0) == (split == "held"):
            break
    forms = [f"{whole},{cents:02d}", f"{whole:,}.{cents:02d}", f"{whole}.{cents:02d}"]
    written = rng.choice(forms if cents else [*forms, f"{whole}", f"{whole:,}"])
    around = rng.choice(("${}", "{} USD", "EUR {}", "{} euros", "€{}", "{} dollars", "USD {}", "{} EUR"))
    return f"{whole}.{cents:02d}", around.format(written)


def _misspell(word: str, rng: random.Random) -> str:
    """Returns the word with one slip of the fingers; the first letter stays."""
    at = rng.randrange(1, len(word) - 1)
    here, after = word[at], word[at + 1 :]
    return word[:at] + rng.choice(
        (after[0] + here + after[1:], after, here + here + after, _NEIGHBOURS.get(here, here) + after)
    )


def _loosen(piece: str, rng: random.Random) -> str:
    """Drops words and slips in stray ones, so that training rests on no single word."""
    stray = " ".join(load_phrases()["frames"]["filler"]["train"]).split()
    words = [f"{word} {rng.choice(stray)}" if rng.random() < 0.04 else word for word in piece.split(" ")]
    # Without these words some sentences would mean something else.
    needed = ("not", "no", "other", "earlier", "previous", "last", "older")
    return " ".join(word for word in words if not word.isalpha() or word in needed or rng.random() > 0.04)


def _add_noise(text: str, rng: random.Random, split: str) -> str:
    """Adds typos and odd casing outside the kept values and removes the marks."""
    loosen = split == "train" and rng.random() < 0.5
    rate = rng.choice((0.0, 0.0, 0.02, 0.05))
    casing = rng.choices(("keep", "lower", "upper"), weights=(80, 16, 10 if split == "train" else 4))[0]
    pieces = text.split(_KEEP)
    for i in range(0, len(pieces), 2):
        piece = _loosen(pieces[i], rng) if loosen else pieces[i]
        if rate:
            piece = _TOKEN.sub(lambda m: _misspell(m[0], rng) if rng.random() < rate else m[0], piece)
        if casing != "keep":
            piece = piece.lower() if casing == "lower" else piece.upper()
        pieces[i] = piece
    return "".join(pieces)


def make_ticket(rng: random.Random, split: str) -> tuple[str, str]:
    """Writes one ticket and its answer.

    Args:
        rng: Source of randomness; the same state gives the same ticket.
        split: "train" or "held", the pools to write from.

    Returns:
        The ticket text and the answer, compact JSON with the keys of FIELDS in that order.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    phrases = load_phrases()
    frames = phrases["frames"]
    answer: dict[str, str | None] = dict.fromkeys(FIELDS)

    def frame(kind: str) -> str:
        return rng.choice(frames[kind][split])

    def mention(label: str) -> str:
        return rng.choice(phrases["mention"]["determiners"]) + rng.choice(phrases["products"][label])

    intent = rng.choice(list(phrases["intents"]))
    product, other_product = rng.sample(list(phrases["products"]), 2)
    phrase = rng.choice(phrases["intents"][intent][split])
    answer["intent"] = intent
    core = frame("ask" if phrase.startswith("~") else "say").format(x=phrase.lstrip("~").replace("{p}", "\x01"))
    if "\x01" in core:
        answer["product"] = product
        core = core.replace("\x01", mention(product))
    elif rng.random() < 0.6:
        answer["product"] = product
        core = f"{core} {frame('product').format(p=mention(product))}"

    priority = rng.choices(("normal", "urgent", "high", "low"), weights=(34, 22, 22, 22))[0]
    answer["priority"] = priority
    cue = "" if priority == "normal" else rng.choice(phrases["priority"][priority][split]) + rng.choice((".", "!", "."))
    layout = rng.choice(phrases["layouts"][split])
    name = person_name(rng, split)
    if rng.random() < 0.92:
        answer["customer"] = name
        if "S" in layout and "N" not in layout and rng.random() < 0.2:
            layout = layout.replace("S", "").replace("I", "NI")
    else:
        layout = layout.replace("N", "").replace("S", "")
    order = amount = ""
    if rng.random() < 0.85:
        answer["order"] = order_id(rng, split)
        order = frame("order").format(o=_keep(answer["order"]))
    if rng.random() < 0.6:
        answer["amount"], written = money(rng, split)
        amount = frame("amount").format(a=_keep(written))

    def distractor() -> str:
        kind = rng.choice(("name", "name", "order", "order", "amount", "amount", "product", "topic", "number"))
        fill = {
            "n": _keep(person_name(rng, split)),
            "o": _keep(order_id(rng, split)),
            "a": _keep(money(rng, split)[1]),
            "q": rng.choice(phrases["products"][other_product]),
            "t": rng.choice([topic for topic, clash in phrases["topics"].items() if intent not in clash]),
            "k": rng.randrange(2, 999),
            "y": rng.randrange(1999, 2026),
        }
        return frame(f"other_{kind}").format(**fill)

    makers = {
        "G": lambda: frame("greet"), "I": lambda: core, "P": lambda: cue, "O": lambda: order, "A": lambda: amount,
        "N": lambda: frame("intro").format(n=_keep(name)), "S": lambda: frame("sign").format(n=_keep(name)),
        "F": lambda: frame("filler"), "D": distractor,
    }  # fmt: skip
    parts: list[str] = []
    for part in layout:
        if rng.random() < 0.12:
            parts.append(distractor() if rng.random() < 0.6 else frame("filler"))
        text = makers[part]()
        if text:
            lead = frame("lead") if part not in "GS" and rng.random() < 0.15 else ""
            parts.append(lead + (text if lead else text[0].upper() + text[1:]))
    # A signature goes on a line of its own now and then, as in a mail.
    body = parts[0]
    for text in parts[1:]:
        body += ("\n" if rng.random() < 0.12 else " ") + text
    return _add_noise(body, rng, split), json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def make_rows(count: int, seed: int = DEMO_SEED, split: str = "held") -> list[dict[str, str]]:
    """Writes numbered rows; row i depends on the seed, the split and i alone.

    Args:
        count: Number of rows.
        seed: Any integer.
        split: "train" or "held".

    Returns:
        Rows with the keys "id" ("t00001" and up), "ticket" and "answer".

    Raises:
        ValueError: The split is unknown.
    """
    rows = []
    for i in range(1, count + 1):
        # A string seed is hashed with SHA-512, so it does not depend on PYTHONHASHSEED.
        ticket, answer = make_ticket(random.Random(f"{seed}/{split}/{i}"), split)
        rows.append({"id": f"t{i:05d}", "ticket": ticket, "answer": answer})
    return rows


def rows_to_jsonl(rows: list[dict[str, str]]) -> str:
    """Returns the rows as JSON lines, each line ended by a newline."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Writes rows to a file of JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=DEMO_ROWS, help="number of rows (default %(default)s)")
    parser.add_argument("--seed", type=int, default=DEMO_SEED, help="seed (default %(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="held", help="pools to write from (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=DEMO_DIR / "tickets.jsonl", help="file to write")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(rows_to_jsonl(make_rows(args.rows, args.seed, args.split)), encoding="utf-8")


if __name__ == "__main__":
    main()
