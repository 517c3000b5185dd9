"""Small models and adapters for each task, made here, and what transformers says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TEXTS = ["My parcel never came.", "I want my money back, please.", "My parcel never came.", "refund"]
QUESTION = "Where is the parcel that I ordered?"
ADAPTERS = {"small": 4, "large": 12}
"""Ranks by name; the large one is none that vLLM has, so that it must be rounded up."""
LABELS = ["late", "refund", "other"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "my", "parcel", "never", "came", "i", "want", "money", "back"]
WORDS += ["please", "refund", "where", "is", "the", "that", "ordered", "?", ".", ","]


def make_models(demo: Path, folder: Path) -> None:
    """Makes `classifier` and `ranker` (the demo's model with a head), `bert`, and the adapters."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    weights = {name: tensor.float() for name, tensor in load_file(demo / "model.safetensors").items()}
    config = json.loads((demo / "config.json").read_text())
    for name, labels in (("classifier", LABELS), ("ranker", ["relevance"])):
        shutil.copytree(demo, folder / name)
        head = {"score.weight": torch.randn(len(labels), config["hidden_size"]) * 0.1}
        save_file({**weights, **head}, folder / name / "model.safetensors", {"format": "pt"})
        changed = {
            **config,
            "architectures": ["LlamaForSequenceClassification"],
            "dtype": "float32",
            "id2label": {str(index): label for index, label in enumerate(labels)},
            "label2id": {label: index for index, label in enumerate(labels)},
        }
        (folder / name / "config.json").write_text(json.dumps(changed))
    _make_bert(folder / "bert")
    for name, rank in ADAPTERS.items():
        _make_adapter(folder / name, config, rank, torch)
    _make_adapter(folder / "broken", config, 4, torch, module="no_proj")


def _make_bert(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        num_labels=1,
        initializer_range=0.3,
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight, std=2.0)
    model.save_pretrained(folder)


def _make_adapter(folder: Path, config: dict[str, Any], rank: int, torch: Any, module: str = "q_proj") -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    heads, size = config["num_attention_heads"] * config["head_dim"], config["hidden_size"]
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": [module], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, size) * 0.2
        tensors[f"{key}.lora_B.weight"] = torch.randn(heads, rank) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")


def references(demo: Path, folder: Path, context: int) -> dict[str, Any]:
    """Returns what transformers gives, by the names of `model_cases.CASES`."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_grad_enabled(False)
    tokenizer, bert_tokenizer = (AutoTokenizer.from_pretrained(path) for path in (demo, folder / "bert"))
    options = {"dtype": torch.float32, "attn_implementation": "eager"}

    def ids(text: str, pair: str | None = None) -> Any:
        return torch.tensor([tokenizer(text, pair)["input_ids"]])

    model = AutoModel.from_pretrained(demo, **options)
    prompts = [*map(ids, TEXTS), torch.tensor([[5] * context])]
    hidden = [model(prompt).last_hidden_state[0, -1] for prompt in prompts]
    vectors = [torch.nn.functional.normalize(vector, dim=0) for vector in hidden]
    question = torch.nn.functional.normalize(model(ids(QUESTION)).last_hidden_state[0, -1], dim=0)

    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "classifier", **options)
    ranker = AutoModelForSequenceClassification.from_pretrained(folder / "ranker", **options)
    bert = AutoModelForSequenceClassification.from_pretrained(folder / "bert", **options).eval()
    typed = [bert_tokenizer(QUESTION, text, return_tensors="pt") for text in TEXTS]

    def untyped(encoded: Any) -> Any:
        return {**encoded, "token_type_ids": torch.zeros_like(encoded["token_type_ids"])}

    def sigmoids(logits: list[Any]) -> list[list[float]]:
        return [torch.sigmoid(logit[0]).tolist() for logit in logits]

    return {
        "embed": [vector.tolist() for vector in vectors],
        "classify": [torch.softmax(classifier(prompt).logits[0], 0).tolist() for prompt in prompts],
        "score_cosine": [[float(question @ vector)] for vector in vectors[: len(TEXTS)]],
        "score_joint": sigmoids([ranker(ids(QUESTION, text)).logits for text in TEXTS]),
        "score_types": sigmoids([bert(**encoded).logits for encoded in typed]),
        "score_without_types": sigmoids([bert(**untyped(encoded)).logits for encoded in typed]),
        "adapters": _adapted(AutoModelForCausalLM.from_pretrained(demo, **options), folder, ids(QUESTION), tokenizer),
    }


def _adapted(model: Any, folder: Path, prompt: Any, tokenizer: Any) -> dict[str, Any]:
    """Greedy tokens with their log-probabilities, without an adapter and with each merged into the weights."""
    import torch
    from safetensors.torch import load_file

    def greedy() -> list[Any]:
        tokens, places = prompt, []
        for _ in range(8):
            logprobs = torch.log_softmax(model(tokens).logits[0, -1], 0)
            best = int(logprobs.argmax())
            places.append([tokenizer.decode([best]), float(logprobs[best])])
            tokens = torch.cat([tokens, torch.tensor([[best]])], 1)
        return places

    answers = {"None": greedy()}
    for name in ADAPTERS:
        tensors = load_file(folder / name / "adapter_model.safetensors")
        changes = [
            (layer.self_attn.q_proj.weight, 2 * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"])
            for index, layer in enumerate(model.model.layers)
            for key in [f"base_model.model.model.layers.{index}.self_attn.q_proj"]
        ]
        for weight, change in changes:
            weight += change
        answers[name] = greedy()
        for weight, change in changes:
            weight -= change
    return answers
