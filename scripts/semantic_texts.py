"""Labelled texts for scripts/bench_semantic.py: two with the same label have the same answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo_tickets import load_phrases, money, order_id, person_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What somebody asks."""

    text: str
    label: str
    """What answers it."""
    family: str
    """Labels of one family go to the same half: one half chooses the threshold, the other one judges it."""


def read_texts(path: Path) -> list[Text]:
    """Reads JSON lines with ``text``, ``label`` and perhaps ``family``; GSM8K's ``question`` is a label of its own.

    Raises:
        ValueError, KeyError: for a line that has none of it.
        OSError: when the file cannot be read.
    """
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        if "question" in row:
            row = {"text": row["question"], "label": f"question {number}"}
        label = str(row["label"])
        texts.append(Text(text=row["text"], label=label, family=str(row.get("family", label))))
    return texts


def make_questions(seed: int = 7, num_products: int = 16, num_wordings: int = 8) -> list[Text]:
    """Questions as a help page answers them: the answer depends on intent and product alone. No text is there twice."""
    rng = random.Random(f"questions {seed}")
    phrases = load_phrases()
    products = sorted(rng.sample(sorted(phrases["products"]), num_products))
    made: dict[str, Text] = {}
    for intent in phrases["intents"]:
        for product in products:
            for _ in range(num_wordings):
                sentence, is_named = _sentence(rng, intent, product)
                text = f"{_pick(rng, 'frames', 'greet')} {sentence}" if rng.random() < 0.3 else sentence
                label = f"{intent} of {product if is_named else 'any'}"
                made[text] = Text(text=text, label=label, family=intent)
    return list(made.values())


def make_tickets(seed: int = 7, num_cases: int = 4, num_wordings: int = 3) -> list[Text]:
    """Whole tickets: the answer copies the customer, the order and the amount, as the demo model's does.

    Each case has five neighbours that differ from it in one of product, priority, customer, order and amount; the first
    wording of all six is the same, word for word.
    """
    rng = random.Random(f"tickets {seed}")
    phrases = load_phrases()
    made: dict[str, Text] = {}
    for intent in phrases["intents"]:
        for case in range(num_cases):
            fields = [_fields(rng) for _ in range(2)]
            for changed in (None, *fields[0]):
                values = {name: fields[name == changed][name] for name in fields[0]}
                if changed is not None and values[changed] == fields[0][changed]:
                    continue
                for wording in range(num_wordings):
                    own = random.Random(f"{seed} {intent} {case} {wording} {'' if wording == 0 else changed}")
                    text = _ticket(own, intent, values)
                    label = f"{intent} {case} {changed}"
                    made[text] = Text(text=text, label=label, family=intent)
    return list(made.values())


def _pick(rng: random.Random, *path: str) -> str:
    """One of both splits' entries."""
    found = load_phrases()
    for name in path:
        found = found[name]
    return rng.choice([*found["train"], *found["held"]])


def _sentence(rng: random.Random, intent: str, product: str) -> tuple[str, bool]:
    """One way to say it, and whether the product is named."""
    phrases = load_phrases()
    phrase = _pick(rng, "intents", intent)
    mention = rng.choice(phrases["mention"]["determiners"]) + rng.choice(phrases["products"][product])
    frame = _pick(rng, "frames", "ask" if phrase.startswith("~") else "say")
    text = frame.format(x=phrase.lstrip("~").replace("{p}", mention))
    return text[0].upper() + text[1:], "{p}" in phrase


def _fields(rng: random.Random) -> dict[str, str]:
    split = rng.choice(("train", "held"))
    return {
        "product": rng.choice(sorted(load_phrases()["products"])),
        "priority": rng.choice(("urgent", "high", "low")),
        "customer": person_name(rng, split),
        "order": order_id(rng, split),
        "amount": money(rng, split)[0],
    }


def _ticket(rng: random.Random, intent: str, values: dict[str, str]) -> str:
    def parts() -> Iterator[str]:
        yield _pick(rng, "frames", "greet")
        sentence, is_named = _sentence(rng, intent, values["product"])
        yield sentence
        if not is_named:
            yield _pick(rng, "frames", "product").format(p=f"the {load_phrases()['products'][values['product']][0]}")
        yield _pick(rng, "frames", "order").format(o=values["order"])
        yield _pick(rng, "frames", "amount").format(a=f"{values['amount']} EUR")
        yield _pick(rng, "priority", values["priority"]) + "."
        yield _pick(rng, "frames", "sign").format(n=values["customer"])

    return " ".join(parts())
