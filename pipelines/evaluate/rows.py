"""The labelled rows, as a model reads them: rendered and tokenized as `manta batch` would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from conf.schema.sampling import SamplingSpec
from pipelines.batch import columns as c
from pipelines.batch.commit import json_text
from pipelines.batch.identify import identify, row_sampling
from pipelines.batch.plan import Plan
from pipelines.batch.read import read_split
from pipelines.batch.template import prompt_source
from serve.engine.prompt import load_renderer


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row that can be asked and judged."""

    place: tuple[str, int]
    """Its file and its number there."""
    tokens: list[int]
    """The prompt's."""
    sampling: SamplingSpec
    adapter: str | None
    expected: str
    expected_tokens: list[int]
    """The expected answer's, with the one that ends it."""


@dataclass(kw_only=True, slots=True)
class Rows:
    """What the input holds."""

    rows: list[Row] = field(default_factory=list)
    bad: dict[tuple[str, int], str] = field(default_factory=dict)
    """Class of error of the others, by place."""
    places: list[tuple[str, int]] = field(default_factory=list)
    """Of all rows, in the order of the input."""
    key: str = ""
    """16 hex digits of rows, prompt and sampling; the model is no part of it."""

    @property
    def num_rows(self) -> int:
        """All of them."""
        return len(self.places)


def read_rows(plan: Plan) -> Rows:
    """Reads all rows of a planned job's input.

    Raises:
        OSError: when a file cannot be read.
    """
    data, found = plan.job.data, Rows()
    assert data.answer is not None
    asked = None if data.messages is not None else prompt_source(data)
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([asked, data.system, data.messages, asdict(plan.job.sampling)], default=str).encode())
    renderer = load_renderer(plan.identity.model, plan.identity.max_model_len, False)
    room = plan.identity.max_model_len - 1  # an engine draws one token at least
    own: dict[str | None, SamplingSpec] = {None: plan.job.sampling}
    for split in plan.source.splits:
        for table in read_split(split, plan.source.schema, plan.source.json_columns, data.id):
            made = identify(table, plan.identity)
            for row in made.select(c.input_columns(made)).to_pylist():
                digest.update(json_text(row).encode())
            columns = (made.column(name).to_pylist() for name in _COLUMNS)
            expected = [text_of(value) for value in made.column(data.answer).to_pylist()]
            tokens = renderer.answers([text or "" for text in expected])
            for (source, position, error, prompt, drawn, adapter), text, ids in zip(
                zip(*columns, strict=True), expected, tokens, strict=True
            ):
                place = (source, position)
                found.places.append(place)
                if error is None and text is None:
                    error = "no_expected_answer"
                elif error is None and len(prompt) + len(ids) > room:
                    error = "answer_too_long"
                if error is not None:
                    found.bad[place] = error
                    continue
                if drawn not in own:
                    own[drawn] = row_sampling(drawn, plan.job.sampling)
                found.rows.append(
                    Row(
                        place=place,
                        tokens=prompt,
                        sampling=own[drawn],
                        adapter=adapter,
                        expected=text or "",
                        expected_tokens=ids,
                    )
                )
    found.key = digest.hexdigest()
    return found


_COLUMNS = (c.SOURCE, c.POSITION, c.ERROR, c.TOKENS, c.SAMPLING, c.ADAPTER)


def text_of(value: Any) -> str | None:
    """Returns an expected answer as text; null where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():  # whole numbers in a column with nulls
        return str(int(value))
    return value if isinstance(value, str) else json_text(value) if isinstance(value, (dict, list)) else str(value)


def spread(rows: Iterable[Row], count: int) -> list[Row]:
    """Returns ``count`` rows, spread evenly; all where there are fewer."""
    known = list(rows)
    if len(known) <= count:
        return known
    return [known[index * len(known) // count] for index in range(count)]
