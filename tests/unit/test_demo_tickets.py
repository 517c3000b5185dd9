# SPDX-License-Identifier: Apache-2.0
"""Tests of the demo tickets, their generator and the files shipped in demo/."""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import demo_tickets  # noqa: E402

TRAIN = demo_tickets.make_rows(1500, seed=3, split="train")
HELD = demo_tickets.make_rows(1200, seed=3)
ROWS = TRAIN + HELD
UNICODE = (
    "",
    " ",
    "plain text",
    "Zoë 123,45 €",
    "日本語のテキスト",
    "🙂‍↔️ \u200d\u0000\t\r\n  x",
    "ﬁ a\u0301 \U0010ffff",
    "A  B KX-1",
)


def _bare(text: str) -> str:
    return re.sub(r"[^\w{}]", "", text.lower())


def _pools(table: dict) -> list[tuple[set[str], set[str]]]:
    """Collects every (train, held) pair of pools below a table."""
    if "train" in table:
        return [(set(table["train"]), set(table["held"]))]
    return [pair for value in table.values() if isinstance(value, dict) for pair in _pools(value)]


def test_same_seed_gives_same_rows_and_another_seed_others() -> None:
    assert demo_tickets.make_rows(50, seed=3) == HELD[:50]
    assert not {row["ticket"] for row in demo_tickets.make_rows(50, seed=4)} & {row["ticket"] for row in HELD}


def test_rows_do_not_depend_on_the_hash_seed(tmp_path: pathlib.Path) -> None:
    texts = []
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        command = [sys.executable, str(ROOT / "scripts" / "demo_tickets.py"), "--rows", "40", "--out", str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        texts.append(out.read_text(encoding="utf-8"))
    assert texts[0] == texts[1] == demo_tickets.rows_to_jsonl(demo_tickets.make_rows(40))


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        demo_tickets.make_ticket(random.Random(0), "test")


def test_phrase_pools_are_disjoint() -> None:
    phrases = demo_tickets.load_phrases()
    pairs = _pools(phrases)
    assert len(pairs) > 50
    for train, held in pairs:
        assert train
        assert held
        assert not {_bare(text) for text in train} & {_bare(text) for text in held}


def test_names_and_numbers_of_the_splits_are_disjoint() -> None:
    draws = {}
    for split in demo_tickets.SPLITS:
        rng = random.Random(5)
        draws[split] = [
            {demo_tickets.person_name(rng, split).split()[-1] for _ in range(3000)},
            {demo_tickets.person_name(rng, split).split()[0] for _ in range(3000)},
            {demo_tickets.order_id(rng, split).split("-")[1] for _ in range(3000)},
            {demo_tickets.money(rng, split)[0] for _ in range(3000)},
        ]
    for train, held in zip(draws["train"], draws["held"], strict=True):
        assert not train & held


def test_answers_are_compact_json_with_known_labels() -> None:
    phrases = demo_tickets.load_phrases()
    assert len(phrases["intents"]) >= 24
    assert len(phrases["products"]) >= 24
    seen = {field: set() for field in demo_tickets.FIELDS}
    for row in ROWS:
        answer = json.loads(row["answer"])
        assert tuple(answer) == demo_tickets.FIELDS
        assert json.dumps(answer, ensure_ascii=False, separators=(",", ":")) == row["answer"]
        for field, value in answer.items():
            seen[field].add(value)
    assert seen["intent"] == set(phrases["intents"])
    assert seen["product"] == {None, *phrases["products"]}
    assert seen["priority"] == {"urgent", "high", "normal", "low"}
    assert all(None in seen[field] for field in ("customer", "order", "amount"))


def test_copied_values_stand_in_the_ticket() -> None:
    for row in ROWS:
        answer = json.loads(row["answer"])
        assert "\x00" not in row["ticket"]
        assert "\x01" not in row["ticket"]
        assert not re.search(r"\{\w\}", row["ticket"])
        for field in ("customer", "order"):
            assert answer[field] is None or answer[field] in row["ticket"]
        if answer["amount"] is not None:
            assert re.fullmatch(r"\d+\.\d\d", answer["amount"])
            whole, cents = answer["amount"].split(".")
            ways = {f"{mark}{sep}{cents}" for mark in (whole, f"{int(whole):,}") for sep in ".,"}
            ways |= {whole, f"{int(whole):,}"} if cents == "00" else set()
            assert any(re.search(rf"(?<!\d){re.escape(way)}(?!\d)", row["ticket"]) for way in ways), row


def test_tickets_carry_values_that_must_not_be_copied() -> None:
    spare = 0
    for row in HELD:
        orders = set(re.findall(r"[A-Z]{2,3}-\d{4,6}", row["ticket"]))
        spare += bool(orders - {json.loads(row["answer"])["order"]})
    assert spare > len(HELD) / 5


def test_shipped_tickets_are_what_the_generator_makes() -> None:
    shipped = (ROOT / "demo" / "tickets.jsonl").read_text(encoding="utf-8")
    rows = demo_tickets.make_rows(demo_tickets.DEMO_ROWS)
    assert shipped == demo_tickets.rows_to_jsonl(rows)
    assert len({row["ticket"] for row in rows}) == demo_tickets.DEMO_ROWS


def test_shipped_weights_are_small_bfloat16_and_match_the_report() -> None:
    path = ROOT / "demo" / "model" / "model.safetensors"
    assert path.stat().st_size <= 10_000_000
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = [value for key, value in header.items() if key != "__metadata__"]
    assert {tensor["dtype"] for tensor in tensors} == {"BF16"}
    report = json.loads((ROOT / "demo" / "model" / "training.json").read_text(encoding="utf-8"))
    held_out = report["held_out"]
    assert held_out["rows"] == demo_tickets.DEMO_ROWS
    assert held_out["seed"] == demo_tickets.DEMO_SEED
    assert 0.97 <= held_out["exact_match"] < 1
    assert path.stat().st_size > 2 * report["parameters"]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(ROOT / "demo" / "model" / "tokenizer.json"))


@pytest.mark.parametrize("text", UNICODE)
def test_tokenizer_round_trips_any_text(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_round_trips_tickets_and_keeps_prompts_short(tokenizer) -> None:
    for row in HELD:
        ids = tokenizer.encode(row["ticket"]).ids
        assert tokenizer.decode(ids) == row["ticket"]
        assert len(tokenizer.encode(row["answer"]).ids) <= 80
    assert sum(len(tokenizer.encode(row["ticket"]).ids) for row in HELD) / len(HELD) < 150


def test_chat_template_matches_the_training_format(tokenizer) -> None:
    jinja2 = pytest.importorskip("jinja2")
    import demo_teacher

    config = json.loads((ROOT / "demo" / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = jinja2.Template(config["chat_template"])
    chat = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
    for pairs in (chat, chat[1:]):
        messages = [{"role": role, "content": text} for role, text in pairs]
        names = {"bos_token": config["bos_token"], "eos_token": config["eos_token"], "messages": messages}
        assert template.render(**names) == demo_teacher.render_chat(pairs)
        assert template.render(**names, add_generation_prompt=True) == demo_teacher.render_chat(pairs) + "<|assistant|>"
    ids = tokenizer.encode(demo_teacher.render_chat(chat)).ids
    assert [tokenizer.id_to_token(i) for i in ids[:2]] == ["<|bos|>", "<|system|>"]
    generation = json.loads((ROOT / "demo" / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == tokenizer.token_to_id(config["eos_token"])
    assert not generation.get("do_sample")


def test_only_answers_are_learnt(tokenizer) -> None:
    pytest.importorskip("numpy")
    import train_demo

    ids, learn = train_demo.encode_chat(tokenizer, [("user", "Hello"), ("assistant", '{"a":1}'), ("user", "x")])
    text = tokenizer.decode([token for token, use in zip(ids, learn, strict=True) if use], skip_special_tokens=False)
    assert text == '{"a":1}<|eos|>'


def test_chunks_depend_on_seed_and_number_alone(tokenizer) -> None:
    np = pytest.importorskip("numpy")
    import train_demo

    for number in (0, 5):
        first, again = (train_demo.make_chunk(tokenizer, 1, number, 16) for _ in range(2))
        assert len(first) == train_demo.BATCHES_A_CHUNK
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(batch.shape[1] <= train_demo.LONG_TOKENS for batch in first)
        other = train_demo.make_chunk(tokenizer, 2, number, 16)
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
