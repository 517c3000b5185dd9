from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARED_TRACE = ROOT.parent / "shared" / "data" / "mooncake_synthetic_trace.jsonl"
sys.path.insert(0, str(ROOT / "scripts"))

import bench_models  # noqa: E402
import bench_workloads as w  # noqa: E402

SHAPE = w.Shape(num_rows=400, vocab_size=4096)
TRACE = [
    {"input_length": 1100, "output_length": 40, "hash_ids": [0, 1, 2]},
    {"input_length": 1536, "output_length": 3, "hash_ids": [0, 1, 7]},
    {"input_length": 900, "output_length": 64, "hash_ids": [8, 9]},
    {"input_length": 1100, "output_length": 17, "hash_ids": [0, 1, 2]},
]


def _prefix(folder: Path, scale: int, requests: list[dict]) -> list[w.Row]:
    trace = folder / "trace.jsonl"
    trace.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return list(w.prefix(w.Shape(num_rows=len(requests), vocab_size=4096, trace=trace, scale=scale)))


def _whole_block_rate(requests: list[dict], scale: int) -> float:
    """What of a trace's tokens lies in whole blocks that were there before, counted by the blocks' ids alone.

    The block with a prompt's last token does not count: an engine always computes that one.
    """
    seen: set[int] = set()
    hits = total = 0
    for request in requests:
        length = max(1, -(-request["input_length"] // scale))
        total += length
        for number, block in enumerate(request["hash_ids"]):
            size = min(512 // scale, length - 1 - number * (512 // scale))
            hits += size // 16 * 16 if block in seen else 0
        seen.update(request["hash_ids"])
    return hits / total


@pytest.mark.parametrize("name", ["uniform", "longtail", "duplicates"])
def test_rows_are_many_and_the_same_each_time(name):
    rows = list(w.WORKLOADS[name](SHAPE))
    assert len(rows) == 400
    assert len({row.id for row in rows}) == 400
    assert rows == list(w.WORKLOADS[name](SHAPE))


@pytest.mark.parametrize("name", ["uniform", "longtail", "duplicates"])
def test_answers_have_fixed_lengths_that_can_be_cut(name):
    whole = list(w.WORKLOADS[name](SHAPE))
    cut = list(w.WORKLOADS[name](w.Shape(num_rows=400, vocab_size=4096, max_tokens=9)))
    assert [row.max_tokens for row in cut] == [min(row.max_tokens, 9) for row in whole]
    assert all(row.answer is None and row.max_tokens >= 1 for row in whole)


def test_ids_are_words_of_the_vocabulary():
    for row in w.longtail(SHAPE):
        assert tuple(map(int, row.text.split())) == row.token_ids
        assert all(16 <= token < 4096 for token in row.token_ids)


def test_longtail_has_the_lengths_it_says():
    rows = list(w.longtail(w.Shape(num_rows=6000, vocab_size=4096)))
    for lengths, mean in (([len(r.token_ids) for r in rows], 245), ([r.max_tokens for r in rows], 153)):
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.04)
        assert max(lengths) > 4 * mean
        assert statistics.median(lengths) < 0.85 * mean


def test_half_of_duplicates_equal_others():
    rows = list(w.duplicates(w.Shape(num_rows=301, vocab_size=4096)))
    assert len({row.text for row in rows}) == 151
    limits = {row.text: row.max_tokens for row in rows}
    assert all(row.max_tokens == limits[row.text] for row in rows)


def test_tickets_say_what_is_expected():
    rows = list(w.tickets(w.Shape(num_rows=20, vocab_size=0)))
    assert len({row.text for row in rows}) == 20
    assert all(row.answer and row.max_tokens == 64 and not row.token_ids for row in rows)


@pytest.mark.parametrize("scale", [1, 4, 32])
def test_prefix_keeps_lengths_and_sharing(tmp_path, scale):
    rows = _prefix(tmp_path, scale, TRACE)
    assert [len(row.token_ids) for row in rows] == [-(-request["input_length"] // scale) for request in TRACE]
    assert [row.max_tokens for row in rows] == [-(-request["output_length"] // scale) for request in TRACE]
    block = 512 // scale
    first, second, third, fourth = (row.token_ids for row in rows)
    assert first[: 2 * block] == second[: 2 * block]
    assert first[2 * block :] != second[2 * block : len(first)]
    assert first == fourth
    assert third[:block] != first[:block]


@pytest.mark.parametrize("scale", [1, 4, 32])
def test_prefix_has_the_best_hit_rate_of_the_blocks(tmp_path, scale):
    rows = _prefix(tmp_path, scale, TRACE)
    assert w.describe(rows)["best_prefix_hit_rate"] == pytest.approx(_whole_block_rate(TRACE, scale), abs=5e-5)


def test_prefix_has_the_best_hit_rate_of_the_real_trace():
    if not SHARED_TRACE.exists():
        pytest.skip("the folder of real workloads, ../shared/data, is absent")
    requests = [json.loads(line) for line in SHARED_TRACE.read_text().splitlines()[:700]]
    shape = w.Shape(num_rows=700, vocab_size=32000, trace=SHARED_TRACE, scale=32)
    rows = list(w.prefix(shape))
    assert len(rows) == len(requests)
    rate = w.describe(rows)["best_prefix_hit_rate"]
    assert rate == pytest.approx(_whole_block_rate(requests, 32), abs=5e-5)
    assert rate > 0.1


def test_prefix_needs_its_trace_and_whole_blocks(tmp_path):
    with pytest.raises(w.Unavailable, match="absent"):
        list(w.prefix(w.Shape(num_rows=3, vocab_size=4096, trace=tmp_path / "none")))
    with pytest.raises(ValueError, match="must divide 32, got 3"):
        _prefix(tmp_path, 3, TRACE)


def test_written_rows_are_one_workload_in_two_forms(tmp_path):
    rows = list(w.longtail(w.Shape(num_rows=5, vocab_size=4096)))
    w.write_rows(rows, tmp_path, "the-model")
    table = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [row["text"] for row in table] == [r["body"]["messages"][0]["content"] for r in requests]
    assert [row["max_tokens"] for row in table] == [r["body"]["max_tokens"] for r in requests]
    assert all(r["body"]["ignore_eos"] and r["body"]["temperature"] == 0 for r in requests)
    assert [row["id"] for row in table] == [r["custom_id"] for r in requests]


def test_the_context_holds_every_row():
    rows = list(w.longtail(w.Shape(num_rows=50, vocab_size=4096)))
    assert w.context_tokens(rows) == 2048
    long = w.Row(id="x", text="", token_ids=(16,) * 2300, max_tokens=10)
    assert w.context_tokens([*rows, long]) == 2560


def test_the_models_tokenizer_gives_exactly_the_ids(tmp_path):
    from transformers import AutoTokenizer

    bench_models.make_model(bench_models.model_config("tiny"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    for row in w.longtail(w.Shape(num_rows=5, vocab_size=4096)):
        chat = [{"role": "user", "content": row.text}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == row.token_ids


@pytest.mark.parametrize(
    ("name", "billions"), [("llama_1b", 1.1), ("llama_8b", 8.03), ("qwen_500m", 0.494), ("experts_7b", 6.92)]
)
def test_models_have_the_sizes_of_their_namesakes(name, billions):
    assert bench_models.num_parameters(bench_models.model_config(name)) / 1e9 == pytest.approx(billions, rel=0.005)


def test_sizes_can_be_changed_by_name():
    assert bench_models.model_config("llama_1b,num_hidden_layers=4")["num_hidden_layers"] == 4
    with pytest.raises(ValueError, match="is no size"):
        bench_models.model_config("llama_1b,layers=4")
    with pytest.raises(ValueError, match="no model 'gpt'"):
        bench_models.model_config("gpt")
