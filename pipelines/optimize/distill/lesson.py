"""What the teacher says once, kept in files beside the step's folder: its answers, and its likeliest tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema.distill import Answers, DistillSpec
from conf.schema.model import ModelSpec
from pipelines.optimize.decoder import load_decoder, pick_device
from pipelines.optimize.distill.writer import write_answers
from pipelines.optimize.padded import pad_rows
from pipelines.optimize.step.task import EXAMPLES, Example, StepTask
from serve.engine.fingerprint import fingerprint_model

if TYPE_CHECKING:
    import torch

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """A teacher's likeliest tokens along the answers of rows."""

    ids: torch.Tensor
    """int32 [answers' tokens, K]."""
    logprobs: torch.Tensor
    """float32 [answers' tokens, K]."""
    starts: list[int]
    """Where each row begins, and where the last one ends."""

    def of(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ids (int64) and log-probabilities of some rows, one after the other."""
        import torch

        spans = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        ids = torch.cat([self.ids[span] for span in spans])
        return ids.long(), torch.cat([self.logprobs[span] for span in spans])


def answer_once(task: StepTask, rows: list[Example], used: Sequence[int]) -> Path:
    """Returns a file of `EXAMPLES` with the teacher's answers to the rows that are used; others keep theirs.

    The file is found again by what decides it: the teacher, the rows, and what limits an answer.
    """
    spec = task.spec.distill
    path = _place(task, rows, used, {"answer_tokens": spec.max_answer_tokens}, "parquet")
    if not path.exists():
        teacher = load_decoder(task.teacher).to(pick_device())
        done = list(rows)
        for at in _by_length(rows, used):
            parts = write_answers(teacher, [rows[row] for row in at], spec.max_answer_tokens, sample=False)
            for row, answered in zip(at, parts, strict=True):
                done[row] = answered
        columns = {"prompt": [row.prompt for row in done], "answer": [row.answer for row in done]}
        pq.write_table(pa.table(columns, schema=EXAMPLES), f"{path}.tmp")
        Path(f"{path}.tmp").replace(path)
    return path


def store_once(task: StepTask, rows: list[Example], used: Sequence[int]) -> Path:
    """Returns a file of what `load_stored` reads: the teacher's likeliest tokens along the answers of the rows used.

    The file is found again by what decides it: the teacher, the rows with their answers, K and the temperature.
    """
    import torch
    from safetensors.torch import save_file

    spec = task.spec.distill
    assert spec.top_k is not None
    path = _place(task, rows, used, {"top_k": spec.top_k, "temperature": spec.temperature}, "safetensors")
    if path.exists():
        return path
    teacher = load_decoder(task.teacher).to(pick_device())
    wanted = set(used)
    lengths = [len(row.answer or ()) if at in wanted else 0 for at, row in enumerate(rows)]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    count = min(spec.top_k, teacher.config.vocab_size)
    ids = torch.zeros(starts[-1], count, dtype=torch.int32)
    logprobs = torch.zeros(starts[-1], count)
    with torch.inference_mode():
        for at in _by_length(rows, used):
            batch = pad_rows([rows[row] for row in at]).to(teacher.device)
            likeliest = torch.log_softmax(answer_logits(teacher, batch) / spec.temperature, -1).topk(count)
            begin = 0
            for row in at:
                span = slice(starts[row], starts[row + 1])
                ids[span] = likeliest.indices[begin : begin + lengths[row]].int().cpu()
                logprobs[span] = likeliest.values[begin : begin + lengths[row]].cpu()
                begin += lengths[row]
    save_file({"ids": ids, "logprobs": logprobs, "starts": torch.tensor(starts)}, f"{path}.tmp")
    Path(f"{path}.tmp").replace(path)
    return path


def load_stored(path: Path) -> Stored:
    """Reads a file of `store_once`."""
    from safetensors.torch import load_file

    file = load_file(path)
    return Stored(file["ids"], file["logprobs"], file["starts"].tolist())


def answer_logits(model: Any, batch: Any) -> torch.Tensor:
    """Returns a decoder's logits where an answer's token comes next, float32 [answers' tokens, vocabulary]."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[batch.asks]).float()


def _by_length(rows: list[Example], used: Sequence[int]) -> list[list[int]]:
    order = sorted(set(used), key=lambda row: (len(rows[row].prompt) + len(rows[row].answer or ()), row))
    return [order[at : at + _AT_ONCE] for at in range(0, len(order), _AT_ONCE)]


def _place(task: StepTask, rows: list[Example], used: Sequence[int], more: dict[str, Any], suffix: str) -> Path:
    """Returns a name beside the step's folder that changes with all that decides what is in the file."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(fingerprint_model(ModelSpec(path=str(task.teacher))).encode())
    for at in sorted(set(used)):
        digest.update(json.dumps([at, rows[at].prompt, rows[at].answer]).encode())
    digest.update(json.dumps([len(rows), more]).encode())
    return task.target.parent / f"teacher-{digest.hexdigest()}.{suffix}"


def needs_teacher(spec: DistillSpec) -> bool:
    """Whether the teacher runs at each step."""
    return spec.kl_weight > 0 and spec.top_k is None


def writes_answers(spec: DistillSpec) -> bool:
    """Whether the teacher writes answers first."""
    return spec.answers is Answers.teacher and spec.on_policy < 1
