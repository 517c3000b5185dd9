from __future__ import annotations

import pytest

from conf.errors import UserError
from conf.schema.task import Task
from serve.engine.capability import check_task, is_cross_encoder, labels, overridden, vector_size

LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256}
BERT = {"architectures": ["BertModel"], "hidden_size": 384}
T5 = {"architectures": ["T5ForConditionalGeneration"], "d_model": 512}
THREE = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"10": "c", "2": "b", "0": "a"}}
TWO = {"architectures": ["BertForSequenceClassification"], "hidden_size": 384}
ONE = {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "relevance"}}
TOKENS = {"architectures": ["BertForTokenClassification"]}
REWARD = {"architectures": ["Qwen2ForRewardModeling"]}
CAN = {
    Task.generate: [LLAMA, T5],
    Task.embed: [LLAMA, T5, BERT],
    Task.classify: [THREE, TWO],
    Task.score: [LLAMA, T5, BERT, ONE],
}
MODELS = [LLAMA, BERT, T5, THREE, TWO, ONE, TOKENS, REWARD]


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("config", MODELS, ids=lambda config: config["architectures"][0])
def test_a_model_can_do_what_its_architecture_is_for(config: dict, task: Task) -> None:
    if config in CAN[task]:
        check_task(config, task, "/m")
        return
    with pytest.raises(UserError) as caught:
        check_task(config, task, "/m")
    message = str(caught.value)
    assert message.startswith(f"task={task.value} needs ")
    assert f"model.path=/m is {config['architectures'][0]}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "config, task, hint",
    [
        (LLAMA, Task.classify, "a classification head (…ForSequenceClassification)"),
        (ONE, Task.classify, "with one label (task=score takes it)"),
        (THREE, Task.score, "with 3 labels (task=classify takes it)"),
        (TWO, Task.score, "with 2 labels (task=classify takes it)"),
    ],
)
def test_the_message_says_what_would_do(config: dict, task: Task, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        check_task(config, task, "/m")
    assert hint in str(caught.value)


@pytest.mark.parametrize("task", Task)
def test_a_config_without_architectures_is_left_to_the_engine(task: Task) -> None:
    check_task({"model_type": "llama"}, task, "/m")


def test_labels_stand_in_the_order_of_their_numbers() -> None:
    assert labels(THREE) == ["a", "b", "c"]
    assert labels(TWO) == ["LABEL_0", "LABEL_1"]  # as in transformers
    assert labels({**TWO, "num_labels": 3}) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert labels(LLAMA) == []


def test_a_head_of_one_label_reads_both_texts_at_once() -> None:
    assert is_cross_encoder(ONE)
    assert not any(is_cross_encoder(config) for config in MODELS if config is not ONE)


def test_overrides_can_make_a_classifier_of_a_model_that_writes() -> None:
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "method": "from_2_way_softmax",
    }
    ranker = overridden(LLAMA, {"hf_overrides": overrides, "max_num_batched_tokens": 512})
    check_task(ranker, Task.score, "/m")
    assert is_cross_encoder(ranker)
    sorter = overridden(ranker, {"hf_overrides": {"method": None}})
    check_task(sorter, Task.classify, "/m")
    assert labels(sorter) == ["no", "yes"]
    assert overridden(LLAMA, {}) == LLAMA


@pytest.mark.parametrize(
    "config, task, size",
    [
        (LLAMA, Task.generate, None),
        (LLAMA, Task.embed, 256),
        (T5, Task.embed, 512),
        ({"text_config": {"hidden_size": 64}, "hidden_size": 8}, Task.embed, 64),
        ({"architectures": ["BertModel"]}, Task.embed, None),
        (THREE, Task.classify, 3),
        (TWO, Task.classify, 2),
        ({}, Task.classify, None),
        (ONE, Task.score, 1),
        (LLAMA, Task.score, 1),
    ],
)
def test_the_size_of_an_answer(config: dict, task: Task, size: int | None) -> None:
    assert vector_size(config, task) == size
