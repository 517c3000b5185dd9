"""A card as a page of Markdown, for someone who has never seen the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from pipelines.batch.progress import duration
from pipelines.evaluate.card import Card
from pipelines.evaluate.words import count, figure, milliseconds, num_bytes, rate, share, table, title


def card_page(card: Card) -> str:
    """Returns the page."""
    c = card.content
    parts = [f"# {c['name']}", *_what(c), "## Quality", *_quality(c), "## Size", _size(c)]
    parts += ["## Speed and memory", *_speed(c), "## How to run it", *_use(c), "## How it was measured", *_how(c)]
    return "\n\n".join(parts) + "\n"


def summary(card: Card, places: list[str]) -> str:
    """Returns what the terminal shows: the tables, and where the card is."""
    c = card.content
    lines = [f"manta evaluate: {c['name']} ({c['path']})", "", *_quality(c), "", _size(c)]
    if c["speed"]:
        lines += ["", _paces(c)]
    lines += [
        "",
        f"  memory   {num_bytes(c['memory'].get('resident_bytes'))} resident, started in {c['start']['seconds']:.1f} s",
    ]
    lines += [f"  card     {place}" for place in places]
    return "\n".join(lines)


def _what(c: dict[str, Any]) -> Iterator[str]:
    kind = c["architecture"] or "a model"
    yield f"{kind}, {count(c['size']['parameters'])} parameters, {num_bytes(c['size']['disk_bytes'])} on disk."
    made = c["made"]
    if made:
        spec = made["spec"]
        part = spec.get(spec.get("kind"), spec)
        settings = ", ".join(f"{key}={value}" for key, value in part.items() if value not in (None, [], {}))
        yield (
            f"Made from **{made['first_model']}** by the step `{made['step']}` ({spec.get('kind', 'step')}:"
            f" {settings}); its weights are {made['form']}. The model before this step has the key `{made['parent']}`."
        )
    else:
        yield "No record of how it was made lies beside it (`artifact.json`)."
    if c["parent"]:
        yield f"It is compared with its parent, `{PurePath(c['parent']['path']).name}`."


def _quality(c: dict[str, Any]) -> Iterator[str]:
    head = ["measure", "value (95 % interval)", "rows"]
    has_parent = any(measured["parent"] for measured in c["quality"].values())
    head += ["parent", "difference (95 % interval)", "p", "within the parent's interval"] if has_parent else []
    rows = []
    for name, m in c["quality"].items():
        row = [title(name), figure(m), f"{m['rows']:,}"]
        if has_parent and m["parent"]:
            verdict = "yes" if m["within_parent"] else "no"
            p = "-" if m["p"] is None else f"{m['p']:.3g}"
            row += [figure(m, m["parent"]), figure(m, m["difference"], is_signed=True), p, verdict]
        elif has_parent:
            row += ["-"] * 4
        rows.append(row)
    yield table(head, rows)
    data = c["data"]
    said = [f"{data['asked']:,} of {data['rows']:,} rows asked"]
    said += [f"{rows:,} left out as {name}" for name, rows in data["left_out"].items()]
    said += [
        f"{data[key]:,} {word}"
        for key, word in (("rejected", "rejected by the engine"), ("cut_off", "cut off"))
        if data[key]
    ]
    said += [f"no {title(name)}: {reason}" for name, reason in c["not_measured"].items()]
    yield "; ".join(said) + "."


def _size(c: dict[str, Any]) -> str:
    s = c["size"]
    bits = [None if s[key] is None else f"{s[key]:.2f}" for key in ("bits_per_parameter", "linear_bits")]
    rows = [
        ["weights on disk", num_bytes(s["disk_bytes"])],
        ["parameters", count(s["parameters"])],
        ["bits a parameter, scales included", bits[0] or "-"],
        ["bits a parameter in layers' matrices", bits[1] or "-"],
        ["zeros in layers' matrices", share(s["linear_sparsity"])],
        ["blocks of four there with two zeros or more", share(s["two_of_four"])],
    ]
    return table(["size", ""], rows)


def _paces(c: dict[str, Any]) -> str:
    rows = [[f"{pace['batch']:,}", rate(pace), milliseconds(pace["ttft_p50_s"])] for pace in c["speed"]]
    return table(["requests at a time", "answer tokens/s, median (spread)", "time to first token, p50"], rows, 0)


def _speed(c: dict[str, Any]) -> Iterator[str]:
    m, hardware = c["memory"], c["hardware"]
    where = (
        f"{hardware['gpus']} x {hardware['gpu']}"
        if "gpu" in hardware
        else f"{hardware['cpu']}, {hardware['cores']} cores"
    )
    yield f"On {where}, engine {c['engine']['kind']} with up to {c['engine']['max_num_seqs']:,} sequences at a time."
    if c["speed"]:
        yield _paces(c)
    rows = [
        ["resident, all of the engine's processes", num_bytes(m.get("resident_bytes"))],
        ["right after the start", num_bytes(m["loaded_bytes"])],
        ["before the engine was started", num_bytes(m["before_bytes"])],
    ]
    if m.get("gpu_bytes") is not None:
        rows.append(["on the GPU, weights and KV cache", num_bytes(m["gpu_bytes"])])
    rows.append(["start", f"{c['start']['seconds']:.1f} s"])
    yield table(["memory and start", ""], rows)


def _use(c: dict[str, Any]) -> Iterator[str]:
    engine = "" if c["engine"]["kind"] == "vllm" else f" engine.kind={c['engine']['kind']}"
    yield (
        "```sh\n"
        f"manta batch model.path={c['path']}{engine} data.input=FILE data.prompt='{{{{ column }}}}' output.path=OUT\n"
        f"manta serve model.path={c['path']}{engine}\n"
        "```"
    )


def _how(c: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in c["versions"].items())
    drawn = "greedy" if c["sampling"]["temperature"] == 0 else f"temperature {c['sampling']['temperature']:g}"
    names = ", ".join(f"`{PurePath(path).name}`" for path in c["data"]["input"])
    yield (
        f"{c['made_at']}, {duration(c['seconds']['all'])}; rows of {names} (key `{c['data']['key']}`); {drawn}, at most"
        f" {c['sampling']['max_tokens']:,} tokens an answer; {versions}. The model's files have the fingerprint"
        f" `{c['fingerprint']}`."
    )
    yield (
        "Shares have Wilson's interval, their differences Newcombe's for pairs (method 10) with McNemar's exact p;"
        f" means have a bootstrap over rows ({c['intervals']['bootstrap_samples']:,} draws, seed"
        f" {c['intervals']['seed']})."
        " Perplexity is that of the expected answer's tokens, its end included, after the prompt."
    )
    if "divergence" in c["quality"]:
        covered = c["quality"]["divergence"]["covered"]
        yield (
            "The divergence is KL(parent || model) of the next token along the parent's own answers, from the"
            f" {c['top_k']} likeliest tokens of both. Tokens that only one side names are taken together, so it is a"
            " lower bound;"
            f" {100 * covered:.2f} % of the parent's probability lies on tokens that were told apart."
        )
    yield (
        "Speed counts an answer's tokens from the first request to the last answer, prompts included, none of them"
        " cached. With a full batch, the time to first token is that of a request that comes while all others are being"
        " answered."
    )
