"""The card of a model: what it is, and what it was measured to be, as data."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema.engine import EngineKind
from pipelines.batch.record import plain
from pipelines.evaluate.conduct import Findings
from pipelines.evaluate.quality import ABSENT, Measured
from pipelines.evaluate.trial import Trial

VERSION = 1
"""Of the card's form; readers refuse what they do not know."""
NAMES = ("card.json", "card.md")


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A card; `content` is what card.json holds."""

    content: dict[str, Any]

    @property
    def name(self) -> str:
        """The model's."""
        return self.content["name"]

    @property
    def method(self) -> str:
        """How it was made: the last step of its recipe, or nothing."""
        made = self.content["made"]
        return made["step"] if made else "-"

    @property
    def quality(self) -> dict[str, dict[str, Any]]:
        """Figures by name, the most telling first."""
        return self.content["quality"]

    def pace(self, full: bool) -> dict[str, Any] | None:
        """Speed with one request at a time, or with a full batch; null where it was not measured."""
        paces = self.content["speed"]
        return (paces[-1] if full else paces[0]) if paces else None


def build_card(
    trial: Trial,
    quality: Mapping[str, Measured],
    model: Findings,
    seconds: Mapping[str, float],
    now: float,
) -> Card:
    """Makes the card of a trial.

    Args:
        trial: what was asked.
        quality: what came of it.
        model: what the model's engine said.
        seconds: by question, and of ``all``.
        now: seconds since the epoch.
    """
    plan, job = trial.model.plan, trial.job
    engine = plan.job.engine
    artifact = trial.artifact
    made = None
    if artifact is not None:
        made = {
            "step": artifact.step,
            "form": artifact.form.value,
            "spec": artifact.spec,
            "key": artifact.key,
            "parent": artifact.parent,
            "first_model": artifact.model,
            "measured": artifact.measured,
            "versions": artifact.versions,
        }
    hardware = model.start["hardware"]
    shape = {
        "kind": engine.kind.value,
        "device": plan.device.value,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "max_num_seqs": engine.max_num_seqs,
        "kv_cache_bytes": engine.kv_cache_bytes,
        "max_model_len": plan.identity.max_model_len,
        "vllm": engine.vllm,
    }
    answers = model.answers
    content = {
        "card": VERSION,
        "name": trial.model.model.name,
        "path": trial.model.model.path,
        "fingerprint": plan.identity.model_fingerprint,
        "architecture": next(iter(trial.config.get("architectures") or ()), None),
        "made": made,
        "parent": None
        if trial.parent is None
        else {"path": trial.parent.model.path, "fingerprint": trial.parent.plan.identity.model_fingerprint},
        "data": {
            "input": job.data.inputs,
            "key": trial.data_key,
            "rows": len(trial.places),
            "asked": len(trial.model.rows),
            "left_out": dict(trial.bad),
            "rejected": sum(answer.text is None for answer in answers),
            "cut_off": sum(answer.is_cut for answer in answers),
            "answer_tokens": sum(answer.tokens for answer in answers),
        },
        "sampling": asdict(plan.job.sampling),
        "quality": {name: _plain(measured, trial) for name, measured in quality.items()},
        "not_measured": trial.skipped,
        "size": trial.size.plain(),
        "memory": {
            "before_bytes": model.start["before_bytes"],
            "loaded_bytes": model.start["loaded_bytes"],
            **model.memory,
        },
        "start": {"seconds": model.start["start_s"], "parts_s": model.start["parts_s"]},
        "speed": model.speed,
        "engine": shape,
        "hardware": hardware,
        "speed_key": _key([hardware, shape, asdict(job.speed), trial.data_key]),
        "versions": model.start["versions"],
        "intervals": {"level": 0.95, "bootstrap_samples": job.quality.bootstrap_samples, "seed": job.quality.seed},
        "top_k": job.quality.top_k,
        "seconds": seconds,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "is_fake": engine.kind is EngineKind.fake,
    }
    return Card(content=plain(content))


def _plain(measured: Measured, trial: Trial) -> dict[str, Any]:
    """A figure with a sign for each row of the input: so cards of models that were asked other ones of them agree."""
    outcomes = ""
    if measured.outcomes:
        signs = dict(zip((row.place for row in trial.model.rows), measured.outcomes, strict=True))
        outcomes = "".join(signs.get(place, ABSENT) for place in trial.places)
    return {**asdict(measured), "outcomes": outcomes, "within_parent": measured.within_parent}


def _key(value: Any) -> str:
    text = json.dumps(plain(value), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_card(folder: Path, card: Card, page: str) -> None:
    """Writes both forms of a card, each at once or not at all.

    Raises:
        UserError: when the folder cannot be written.
    """
    text = json.dumps(card.content, indent=2, ensure_ascii=False) + "\n"
    try:
        for name, content in zip(NAMES, (text, page), strict=True):
            (folder / f"{name}.tmp").write_text(content, encoding="utf-8")
            (folder / f"{name}.tmp").replace(folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; set output.path=FOLDER") from error


def read_card(path: Path) -> Card:
    """Reads a card: a file, or that of a folder.

    Raises:
        UserError: when there is none, or none of a known form.
    """
    file = path / NAMES[0] if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no {NAMES[0]} there; manta evaluate model.path={path} data=... writes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("card") != VERSION:
        has = content.get("card") if isinstance(content, dict) else None
        raise UserError(f"{file}: a card of form {VERSION} is wanted, this one has {has!r}")
    missing = [key for key in ("name", "made", "data", "quality", "size", "memory", "speed") if key not in content]
    if missing:
        raise UserError(f"{file}: it lacks {', '.join(missing)}: manta evaluate writes it anew")
    return Card(content=content)
