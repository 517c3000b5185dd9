"""A tokenizer.json with its chat template, without transformers: importing that imports torch (3 s, 300 MB)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from conf.errors import UserError

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PlainTokenizer:
    """What `PromptRenderer` asks of a tokenizer of transformers."""

    def __init__(self, folder: Path) -> None:
        """Loads it.

        Raises:
            UserError: when the folder has none, or it cannot be read.
        """
        from tokenizers import Tokenizer

        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            self.backend_tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain exceptions
            text = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: its tokenizer cannot be loaded: {text}") from error
        self.chat_template = _template(folder, config)
        self._special = {name: _text(config[name]) for name in SPECIAL if config.get(name)}

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends an answer; null where the configuration names none."""
        end = self._special.get("eos_token")
        return None if end is None else self.backend_tokenizer.token_to_id(end)

    def apply_chat_template(
        self, messages: list[Mapping[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Renders a conversation.

        Args:
            messages: ``{"role": str, "content": str}`` each.
            tokenize: False; there for the likeness.
            add_generation_prompt: whether an answer is to follow.

        Raises:
            Exception: what the template raises.
        """
        assert not tokenize, "text is asked for"
        assert self.chat_template, "the renderer looks first"
        template = _compiled(self.chat_template)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._special)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Turns token ids into text."""
        return self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: of a file of its own, or of the configuration, where it may be one of several by name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return template


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """A template, in a sandbox: it came with the model.

    Source: transformers/utils/chat_template_utils.py, _compile_jinja_template (5.16-5.19).
    """
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    # Jinja's own escapes HTML, and prompts are none
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
