"""From chat messages to token ids: the chat template and the token budget."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema.model import ModelSpec
from serve.engine.checkpoint import plain_config
from serve.engine.errors import RequestRejected
from serve.engine.gguf.folder import is_gguf_folder
from serve.engine.onnx.layout import is_edge_folder
from serve.engine.tokenizer import PlainTokenizer

Message = dict[str, Any]


def _has_separator(model: ModelSpec) -> bool:
    """Whether a pair is tokenized as a pair, not as one text.

    Source: vllm/config/model.py, use_sep_token, and SequenceClassificationConfig in models/adapters.py (0.26-0.32).
    """
    config = plain_config(model.path)
    return bool(config.get("use_sep_token", "method" not in config))


def _load_tokenizer(model: ModelSpec) -> Any:
    """A tokenizer of transformers; for the edge one without, because transformers imports torch.

    Raises:
        UserError: when it cannot be loaded.
    """
    if is_edge_folder(model.path) or is_gguf_folder(model.path):
        return PlainTokenizer(Path(model.tokenizer or model.path).expanduser())
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model.tokenizer or model.path, trust_remote_code=model.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # transformers raises what its loaders raise
        text = " ".join(str(error).split())[:300]
        raise UserError(f"model.path={model.path}: its tokenizer cannot be loaded: {text}") from error


class PromptRenderer:
    """A tokenizer with its chat template."""

    def __init__(self, model: ModelSpec, max_model_len: int, apply_chat_template: bool | None) -> None:
        """Loads the tokenizer.

        Args:
            model: the checkpoint.
            max_model_len: the context in tokens.
            apply_chat_template: null applies it where the model has one.

        Raises:
            UserError: when the tokenizer cannot be loaded, or has no chat template where one is asked for.
        """
        tokenizer = _load_tokenizer(model)
        if model.chat_template is not None:
            tokenizer.chat_template = Path(model.chat_template).expanduser().read_text(encoding="utf-8")
        has_template = bool(tokenizer.chat_template)
        if apply_chat_template and not has_template:
            raise UserError(
                "data.apply_chat_template=true, but the model has no chat template; set model.chat_template"
            )
        self._tokenizer = tokenizer
        # transformers asks for offsets in the text too, which take as long as the tokens
        self._fast: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()
        self._is_chat = has_template if apply_chat_template is None else apply_chat_template
        self._max_model_len = max_model_len
        self._has_separator = _has_separator(model)

    def text(self, messages: Sequence[Message]) -> str:
        """Renders one conversation.

        Args:
            messages: ``{"role": str, "content": str}`` each.

        Raises:
            RequestRejected: when the chat template refuses them.
        """
        if not self._is_chat:
            return "\n\n".join(str(message["content"]) for message in messages)
        try:
            return self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like: jinja2.TemplateError, TypeError, KeyError
            raise RequestRejected("chat_template", " ".join(str(error).split()) or type(error).__name__) from error

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes rendered prompts, all at once."""
        if not texts:
            return []
        # a chat template writes the special tokens itself
        special = not self._is_chat
        if self._fast is not None:
            return [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=special)]
        return self._tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False)["input_ids"]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes expected answers: no special tokens, but for the one that ends a turn."""
        end = self._tokenizer.eos_token_id
        if self._fast is not None:
            ids = [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]
        else:
            ids = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [tokens if end is None or tokens[-1:] == [end] else [*tokens, end] for tokens in ids]

    def pair(self, text_a: str, text_b: str, joint: bool) -> tuple[list[int], int]:
        """Tokenizes two texts whose closeness is asked for; no chat template is applied.

        Args:
            text_a: the query.
            text_b: the document.
            joint: True for a model that reads both at once, with the separators that its tokenizer puts between them
                (none where config.json says ``use_sep_token: false``, as vLLM reads it); False for one that embeds
                each: then the tokens are those of the one text and after them those of the other.

        Returns:
            The token ids, and the index where the second text begins.

        Raises:
            RequestRejected: when a text is empty, or has more tokens than the context.
        """
        if not text_a or not text_b:
            raise RequestRejected("empty_prompt", "one of the two texts is empty")
        if not joint:
            first, second = self._tokenizer([text_a, text_b], return_attention_mask=False)["input_ids"]
            self.check_length(first, answer_tokens=0)
            self.check_length(second, answer_tokens=0)
            return first + second, len(first)
        if self._has_separator:
            encoded = self._tokenizer(text_a, text_b, return_token_type_ids=True)
            token_ids, types = encoded["input_ids"], encoded["token_type_ids"]
            if 1 not in types and encoded.is_fast:  # a tokenizer without token types gives zeros
                types = encoded.sequence_ids(0)
        else:
            encoded = self._tokenizer(text_a + text_b, return_offsets_mapping=True)
            token_ids = encoded["input_ids"]
            types = [int(end > len(text_a)) for _, end in encoded["offset_mapping"]]
        self.check_length(token_ids, answer_tokens=0)
        return token_ids, types.index(1) if 1 in types else len(token_ids)

    def check_length(self, token_ids: Sequence[int], answer_tokens: int = 1) -> None:
        """Checks that a prompt leaves room for an answer.

        Args:
            token_ids: the prompt.
            answer_tokens: tokens that an answer has at least; 0 where it is a vector.

        Raises:
            RequestRejected: when it does not.
        """
        if not token_ids:
            raise RequestRejected("empty_prompt", "the prompt has no tokens")
        if len(token_ids) + answer_tokens > self._max_model_len:
            message = f"the prompt has {len(token_ids)} tokens, the context {self._max_model_len}"
            raise RequestRejected("prompt_too_long", message)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turns token ids into text, without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)


@lru_cache(maxsize=2)
def _load(key: tuple[Any, ...], max_model_len: int, apply_chat_template: bool | None) -> PromptRenderer:
    path, tokenizer, chat_template, trust = key
    model = ModelSpec(path=path, tokenizer=tokenizer, chat_template=chat_template, trust_remote_code=trust)
    return PromptRenderer(model, max_model_len, apply_chat_template)


def load_renderer(model: ModelSpec, max_model_len: int, apply_chat_template: bool | None) -> PromptRenderer:
    """Returns this process's renderer for a model; loads it once. See `PromptRenderer`."""
    key = (model.path, model.tokenizer, model.chat_template, model.trust_remote_code)
    return _load(key, max_model_len, apply_chat_template)
