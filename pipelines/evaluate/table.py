"""Cards side by side: one row each, differences to the first named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from conf.errors import UserError, nearest
from pipelines.evaluate.card import Card
from pipelines.evaluate.interval import Interval, difference
from pipelines.evaluate.quality import against
from pipelines.evaluate.words import count, figure, milliseconds, num_bytes, rate, share, table, title

OTHER_DATA, OTHER_MACHINE, FAKE = "†", "‡", "§"
"""Beside what cannot be compared with the first row."""


def choose_metric(cards: Sequence[Card], wanted: str | None) -> str:
    """Returns the figure of quality that is compared: the one asked for, else the first share that all cards have.

    Raises:
        UserError: when a card lacks it, or they have none in common.
    """
    common = [name for name in cards[0].quality if all(name in card.quality for card in cards)]
    if wanted is not None:
        if wanted not in common:
            lacking = next(card.name for card in cards if wanted not in card.quality)
            hint = f"{nearest(wanted, common)} (all have {', '.join(common) or 'none'})"
            raise UserError(f"--metric {wanted}: the card of {lacking} lacks it{hint}")
        return wanted
    if not common:
        raise UserError("the cards have no figure of quality in common: evaluate them with the same quality.metrics")
    return next((name for name in common if cards[0].quality[name]["is_share"]), common[0])


def compared(cards: Sequence[Card], metric: str) -> list[dict[str, Any]]:
    """Returns the rows of the table as data.

    Args:
        cards: the first is what the others are compared with.
        metric: of `choose_metric`.
    """
    return [_row(card, cards[0], metric) for card in cards]


def _row(card: Card, first: Card, metric: str) -> dict[str, Any]:
    measured, size, memory = card.quality[metric], card.content["size"], card.content["memory"]
    alone, full = card.pace(full=False), card.pace(full=True)
    same_data = card.content["data"]["key"] == first.content["data"]["key"]
    first_full = first.pace(full=True)
    same_machine = card.content["speed_key"] == first.content["speed_key"]
    speed_up = None
    if full and first_full and same_machine:
        speed_up = full["tokens_per_s"]["median"] / first_full["tokens_per_s"]["median"]
    return {
        "name": card.name,
        "method": card.method,
        "metric": metric,
        "quality": measured,
        "difference": None if card is first or not same_data else _difference(measured, first.quality[metric]),
        "perplexity": card.quality.get("perplexity"),
        "divergence": card.quality.get("divergence"),
        "disk_bytes": size["disk_bytes"],
        "parameters": size["parameters"],
        "bits_per_parameter": size["bits_per_parameter"],
        "linear_sparsity": size["linear_sparsity"],
        "alone": alone,
        "full": full,
        "speed_up": speed_up,
        "resident_bytes": memory.get("resident_bytes"),
        "gpu_bytes": memory.get("gpu_bytes"),
        "same_data": same_data,
        "same_machine": same_machine,
        "is_fake": card.content.get("is_fake", False),
    }


def _difference(own: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any] | None:
    """The difference to the first card, by rows where both say what came of each; null for means of different cards."""
    if not own["is_share"]:
        return None
    if len(own["outcomes"]) == len(first["outcomes"]) and (pairs := against(own["outcomes"], first["outcomes"])):
        return {**asdict(pairs["difference"]), "p": pairs["p"], "is_paired": True}
    return {**asdict(difference(Interval(**own["figure"]), Interval(**first["figure"]))), "p": None, "is_paired": False}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table, and under it what its marks mean."""
    metric, first = rows[0]["metric"], rows[0]
    optional = [name for name in ("perplexity", "divergence") if any(row[name] for row in rows) and name != metric]
    has_gpu = any(row["gpu_bytes"] is not None for row in rows)
    head = ["model", "method", f"{title(metric)} (95 % interval)", f"difference to {first['name']}"]
    head += [{"perplexity": "perplexity", "divergence": "KL, nats"}[name] for name in optional]
    head += ["disk", "parameters", "bits", "zeros", "tokens/s, full batch (spread)", f"x {first['name']}"]
    head += ["tokens/s, one", "first token, one", "memory", *(["GPU"] if has_gpu else [])]
    return "\n\n".join([table(head, [_cells(row, optional, has_gpu) for row in rows], 2), *notes_of(rows)])


def _cells(row: Mapping[str, Any], optional: Sequence[str], has_gpu: bool) -> list[str]:
    data = "" if row["same_data"] else f" {OTHER_DATA}"
    machine = "" if row["same_machine"] else f" {OTHER_MACHINE}"
    change = row["difference"]
    bits = row["bits_per_parameter"]
    cells = [row["name"] + (f" {FAKE}" if row["is_fake"] else ""), row["method"], figure(row["quality"]) + data]
    cells.append("-" if change is None else figure(row["quality"], change, is_signed=True))
    cells += [f"{row[name]['figure']['value']:.4g}" if row[name] else "-" for name in optional]
    cells += [num_bytes(row["disk_bytes"]), count(row["parameters"]), "-" if bits is None else f"{bits:.2f}"]
    cells += [share(row["linear_sparsity"]), rate(row["full"]) + machine]
    cells += ["-" if row["speed_up"] is None else f"{row['speed_up']:.2f}"]
    cells += ["-" if row["alone"] is None else f"{row['alone']['tokens_per_s']['median']:,.0f}"]
    cells += ["-" if row["alone"] is None else milliseconds(row["alone"]["ttft_p50_s"])]
    return [*cells, num_bytes(row["resident_bytes"]), *([num_bytes(row["gpu_bytes"])] if has_gpu else [])]


def notes_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what the marks in the rows mean."""
    notes = []
    if not all(row["same_data"] for row in rows):
        notes.append(f"{OTHER_DATA} measured on other rows, prompts or sampling: not comparable with {rows[0]['name']}")
    if not all(row["same_machine"] for row in rows):
        notes.append(
            f"{OTHER_MACHINE} another machine, engine or batch: not comparable in speed with {rows[0]['name']}"
        )
    if any(row["is_fake"] for row in rows):
        notes.append(f"{FAKE} of the fake engine: no figure of the model's")
    if any(row["difference"] and not row["difference"]["is_paired"] for row in rows):
        notes.append("Some differences are between shares of different rows, and their intervals wider for it.")
    return notes
