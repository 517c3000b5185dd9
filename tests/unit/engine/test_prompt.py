from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.errors import UserError
from conf.schema.model import ModelSpec
from serve.engine.errors import RequestRejected
from serve.engine.prompt import PromptRenderer


@pytest.fixture(scope="module")
def renderer(demo_model: Path) -> PromptRenderer:
    return PromptRenderer(ModelSpec(path=str(demo_model)), 64, None)


def test_rendering_and_tokenizing_equals_the_tokenizers_own_chat(demo_model: Path, renderer: PromptRenderer) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe? 🙂\n<b>"}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert renderer.tokens([renderer.text(messages)]) == [wanted]


def test_any_text_survives_tokenizing(renderer: PromptRenderer) -> None:
    for text in ("plain", "naïve façade", "日本語", "\x00\x07", "a\u200db", "🧑‍🚀" * 3):
        (token_ids,) = renderer.tokens([text])
        assert renderer.decode(token_ids) == text


def test_without_the_chat_template_a_prompt_is_its_text(demo_model: Path) -> None:
    raw = PromptRenderer(ModelSpec(path=str(demo_model)), 64, False)
    assert raw.text([{"role": "user", "content": "once upon"}]) == "once upon"


def test_a_chat_template_of_ones_own_replaces_the_models(demo_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("Q: {{ messages[0]['content'] }} A:")
    renderer = PromptRenderer(ModelSpec(path=str(demo_model), chat_template=str(template)), 64, None)
    assert renderer.text([{"role": "user", "content": "why"}]) == "Q: why A:"


def test_a_chat_template_that_refuses_messages_makes_a_bad_row(demo_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    renderer = PromptRenderer(ModelSpec(path=str(demo_model), chat_template=str(template)), 64, None)
    with pytest.raises(RequestRejected, match="roles must alternate"):
        renderer.text([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("tokens, error", [(0, "empty_prompt"), (64, "prompt_too_long"), (500, "prompt_too_long")])
def test_prompts_that_leave_no_room_are_rejected(renderer: PromptRenderer, tokens: int, error: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        renderer.check_length([5] * tokens)
    assert caught.value.error == error


def test_a_prompt_that_leaves_room_for_a_token_is_not(renderer: PromptRenderer) -> None:
    renderer.check_length([5] * 63)


def test_a_prompt_that_needs_no_answer_may_fill_the_context(renderer: PromptRenderer) -> None:
    renderer.check_length([5] * 64, answer_tokens=0)
    with pytest.raises(RequestRejected):
        renderer.check_length([5] * 65, answer_tokens=0)


def test_two_texts_to_embed_stand_one_after_the_other(renderer: PromptRenderer) -> None:
    token_ids, split = renderer.pair("late parcel", "refund", joint=False)
    assert [renderer.decode(token_ids[:split]), renderer.decode(token_ids[split:])] == ["late parcel", "refund"]


def test_each_of_two_texts_to_embed_has_the_whole_context(renderer: PromptRenderer) -> None:
    text = "q" * 60
    token_ids, split = renderer.pair(text, text, joint=False)
    assert len(token_ids) > 64 > split
    for pair in ((text * 9, "x"), ("x", text * 9)):
        with pytest.raises(RequestRejected, match="the context 64"):
            renderer.pair(*pair, joint=False)


def test_two_texts_to_read_at_once_share_the_context(renderer: PromptRenderer) -> None:
    token_ids, split = renderer.pair("late parcel", "refund", joint=True)
    assert renderer.decode(token_ids[split:]) == "refund"
    with pytest.raises(RequestRejected, match="the context 64"):
        renderer.pair("q" * 60, "z" * 60, joint=True)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "late", "parcel", "refund"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path


def test_the_second_text_begins_where_the_tokenizer_changes_the_type(bert: Path) -> None:
    renderer = PromptRenderer(ModelSpec(path=str(bert)), 64, None)
    assert renderer.pair("late parcel", "refund", joint=True) == ([2, 5, 6, 3, 7, 3], 4)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("texts", [("", "x"), ("x", "")])
def test_half_a_pair_is_rejected(renderer: PromptRenderer, texts: tuple[str, str], joint: bool) -> None:
    with pytest.raises(RequestRejected) as caught:
        renderer.pair(*texts, joint=joint)
    assert caught.value.error == "empty_prompt"


def test_a_model_without_a_separator_reads_one_text(bert: Path) -> None:
    for config in ({"use_sep_token": False}, {"method": "from_2_way_softmax"}):
        (bert / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
        renderer = PromptRenderer(ModelSpec(path=str(bert)), 64, None)
        assert renderer.pair("late ", "refund", joint=True) == ([2, 5, 7, 3], 2)


def test_a_chat_is_refused_where_the_model_has_no_template(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((demo_model / "tokenizer.json").read_bytes())
    settings = json.loads((demo_model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="has no chat template"):
        PromptRenderer(ModelSpec(path=str(tmp_path)), 64, True)


def test_a_tokenizer_that_cannot_be_loaded_is_the_users_mistake_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError) as caught:
        PromptRenderer(ModelSpec(path=str(tmp_path)), 64, None)
    assert "\n" not in str(caught.value)
