"""What a checkpoint can be asked for, by its config.json: before any engine starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import UserError
from conf.schema.task import Task

GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ChatModel")
"""Ends of the names of architectures that write text. Source: vllm/config/model.py, _SUFFIX_TO_DEFAULTS (0.26-0.32)."""
CLASSIFIES = ("ForSequenceClassification",)
OTHER_HEADS = ("ForTokenClassification", "ForQuestionAnswering", "ForRewardModeling", "RewardModel")
"""Heads for what no task asks for."""

Config = Mapping[str, Any]
"""A config.json, as it stands or `overridden`."""


def overridden(config: Config, arguments: Mapping[str, Any]) -> Config:
    """Returns a config.json with what `engine.vllm.hf_overrides` puts over it.

    Args:
        config: the checkpoint's.
        arguments: the node `engine.vllm`.
    """
    overrides = arguments.get("hf_overrides")
    return {**config, **overrides} if isinstance(overrides, Mapping) else config


def check_task(config: Config, task: Task, path: str) -> None:
    """Checks that a model can do a task, as far as its `architectures` say; where they are absent, nothing is checked.

    generate needs a model that writes text; classify a classification head of two labels or more; score a
    classification head of one label, or a model that embeds; embed any model without another head.

    Args:
        config: the checkpoint's.
        task: what is asked of it.
        path: the checkpoint's folder, for the message.

    Raises:
        UserError: when it cannot.
    """
    names = config.get("architectures") or []
    if not names:
        return
    is_classifier, is_other = _ends(names, CLASSIFIES), _ends(names, OTHER_HEADS)
    has = f"model.path={path} is {', '.join(names)}"
    if task is Task.generate and not _ends(names, GENERATES):
        needs = "a model that writes text (…ForCausalLM, …ForConditionalGeneration)"
    elif task is Task.classify and not is_classifier:
        needs = "a model with a classification head (…ForSequenceClassification)"
    elif task is Task.classify and is_cross_encoder(config):
        needs = "a classification head of two labels or more"
        has += " with one label (task=score takes it)"
    elif task is Task.score and is_classifier and not is_cross_encoder(config):
        needs = "a classification head of one label, or a model that embeds"
        has += f" with {len(labels(config))} labels (task=classify takes it)"
    elif task is Task.score and is_other:
        needs = "a classification head of one label, or a model that embeds"
    elif task is Task.embed and (is_classifier or is_other):
        needs = "a model without a classification head (…Model, …ForCausalLM)"
    else:
        return
    raise UserError(f"task={task.value} needs {needs}, {has}")


def is_cross_encoder(config: Config) -> bool:
    """Returns whether the model reads a pair of texts at once and gives one score: a classification head of one label.

    Any other model scores a pair by the cosine of two embeddings.
    """
    return _ends(config.get("architectures") or [], CLASSIFIES) and len(labels(config)) == 1


def labels(config: Config) -> list[str]:
    """Returns the names of the classes in the order of their probabilities.

    A config.json without them means two, as in transformers; a model without a classification head has none.
    """
    if not _ends(config.get("architectures") or [], CLASSIFIES):
        return []
    if config.get("method") == "from_2_way_softmax":  # vLLM makes one label of two tokens' likelihoods
        return ["LABEL_0"]
    if config.get("classifier_from_token"):
        return [str(token) for token in config["classifier_from_token"]]
    names = config.get("id2label")
    if isinstance(names, Mapping) and names:
        return [str(names[key]) for key in sorted(names, key=int)]
    return [f"LABEL_{index}" for index in range(int(config.get("num_labels") or 2))]


def vector_size(config: Config, task: Task) -> int | None:
    """Returns how many numbers an answer has, if config.json says so.

    A folder with sentence-transformers' Dense layers may embed in another size than its config.json says.

    Returns:
        embed: the hidden size; classify: the number of labels; score: 1; generate: None.
    """
    if task is Task.generate:
        return None
    if task is Task.score:
        return 1
    if task is Task.classify:
        return len(labels(config)) or None
    text = config.get("text_config")
    for part in (text, config) if isinstance(text, Mapping) else (config,):
        for key in ("hidden_size", "n_embd", "d_model", "dim"):
            if isinstance(part.get(key), int):
                return part[key]
    return None


def _ends(names: list[str], suffixes: tuple[str, ...]) -> bool:
    return any(name.endswith(suffixes) for name in names)
