# SPDX-License-Identifier: Apache-2.0
"""The demo teacher: its tokenizer, its chat format, its shape and its score on held-out tickets."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import demo_tickets
import tokenizers

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
SPECIALS = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))
VOCAB_SIZE = 2048
MAX_POSITIONS = 4096
# Every message ends with the end token, so one token stops generation whatever the turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Chat = list[tuple[str, str]]


def render_chat(chat: Chat) -> str:
    """Renders a conversation as the chat template does, without a generation prompt.

    Args:
        chat: Pairs of a role and a text.

    Returns:
        The text with special tokens written out.
    """
    return BOS + "".join(f"<|{role}|>{text}{EOS}" for role, text in chat)


def train_tokenizer(seed: int, rows: int = 12000) -> tokenizers.Tokenizer:
    """Trains the byte-level BPE tokenizer on training tickets.

    Args:
        seed: Seed of the tickets.
        rows: Number of tickets to learn merges from.

    Returns:
        A tokenizer of at most VOCAB_SIZE tokens in which every text is legal and decodes to itself.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    # Single digits, and no space glued to a capital: a number or a name is then the same tokens wherever it stands,
    # which makes copying learnable.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r" (?=\p{Lu})"), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    data = demo_tickets.make_rows(rows, seed, "train")
    tokenizer.train_from_iterator((row[key] for row in data for key in ("ticket", "answer")), trainer)
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, out: pathlib.Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, the latter with the chat template.

    Args:
        tokenizer: The trained tokenizer.
        out: Existing folder.
    """
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "padding_side": "left",
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_model(seed: int, hidden_size: int = 256, layers: int = 4) -> Any:
    """Builds the untrained teacher.

    Args:
        seed: Seed of the initial weights.
        hidden_size: A multiple of 128; it has a head for each 64.
        layers: Number of layers.

    Returns:
        A float32 transformers.LlamaForCausalLM, of about 3.5 M parameters in the demo's size.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index(PAD),
        bos_token_id=SPECIALS.index(BOS),
        eos_token_id=SPECIALS.index(EOS),
    )
    config._attn_implementation = "sdpa"
    model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=128,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )
    return model


def save_model(model: Any, out: pathlib.Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bfloat16).

    Args:
        model: The float32 teacher; it is left as it is.
        out: Folder to write to.
    """
    import torch

    copy.deepcopy(model).to(dtype=torch.bfloat16, device="cpu").save_pretrained(out)


def evaluate(folder: pathlib.Path, rows: list[dict[str, str]], device: str, batch_size: int = 300) -> dict[str, Any]:
    """Scores a saved checkpoint by greedy generation in bfloat16.

    Args:
        folder: A checkpoint with its tokenizer.
        rows: Rows of demo_tickets.make_rows.
        device: "cpu" or "cuda".
        batch_size: Tickets generated at once.

    Returns:
        "rows", "exact_match" (share of answers equal to the last character), "fields" (share per field) and
        "misses", the wrong rows with the model's output.
    """
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = model.to(device).eval()
    return score(model, tokenizer, rows, batch_size)


def score(model: Any, tokenizer: Any, rows: list[dict[str, str]], batch_size: int = 300) -> dict[str, Any]:
    """Does what `evaluate` does, of a model that is loaded."""
    import torch

    misses, right = [], dict.fromkeys(demo_tickets.FIELDS, 0)
    for at in range(0, len(rows), batch_size):
        part = rows[at : at + batch_size]
        chats = [[{"role": "user", "content": row["ticket"]}] for row in part]
        prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(part, texts, strict=True):
            expected = json.loads(row["answer"])
            try:
                got = json.loads(text)
            except ValueError:
                got = None
            for field in right:
                right[field] += isinstance(got, dict) and field in got and got[field] == expected[field]
            if text != row["answer"]:
                misses.append({**row, "output": text})
    return {
        "rows": len(rows),
        "exact_match": round(1 - len(misses) / len(rows), 5),
        "fields": {field: round(count / len(rows), 5) for field, count in right.items()},
        "misses": misses,
    }
