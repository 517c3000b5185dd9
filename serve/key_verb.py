"""`manta keys`: makes, lists and revokes API keys."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from serve.keys import Key, Limits, Priority, add_key, keys_path, make_key, read_keys, revoke_key


def run(words: list[str]) -> int:
    """Runs `manta keys`.

    Args:
        words: what to do, and its options.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for a name that is taken, or not there.
    """
    try:
        options = _parser().parse_args(words)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    path = keys_path(options.file, os.environ)
    if options.action == "list":
        print(_table(read_keys(path), datetime.now(UTC)), end="")
    elif options.action == "revoke":
        key = revoke_key(path, options.key)
        print(f"revoked {key.name} ({key.id}); running services refuse it within a second")
    else:
        now = datetime.now(UTC).replace(microsecond=0)
        expires = now + timedelta(days=options.expires_in_days) if options.expires_in_days else None
        limits = Limits(
            requests_per_min=options.requests_per_min,
            tokens_per_min=options.tokens_per_min,
            max_concurrent=options.max_concurrent,
        )
        secret = add_key(path, make_key(options.name, limits, Priority(options.priority), expires, now))
        print("this key is shown once; keep it now:", file=sys.stderr)
        print(secret)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="manta keys", description="Makes, lists and revokes API keys of manta serve.")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--file", metavar="FILE", help="the key file, access.keys_file ($MANTA_HOME/keys.json)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|revoke")
    add = actions.add_parser("add", parents=[where], help="make a key and show it once")
    add.add_argument("name", metavar="NAME", help="whose key it is; appears in metrics and logs")
    for limit in ("requests-per-min", "tokens-per-min", "max-concurrent"):
        add.add_argument(
            f"--{limit}", type=_count, metavar="N", help=f"access.{limit.replace('-', '_')} where left out"
        )
    add.add_argument("--priority", choices=[p.value for p in Priority], default=Priority.interactive.value)
    add.add_argument("--expires-in-days", type=_days, metavar="N", help="never where left out")
    actions.add_parser("list", parents=[where], help="show keys, without their secrets")
    revoke = actions.add_parser("revoke", parents=[where], help="remove a key; running services see it at once")
    revoke.add_argument("key", metavar="NAME|ID")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 999999999, got '{text}'")
    return int(text)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 99999, got '{text}'")
    return int(text)


def _table(keys: Sequence[Key], now: datetime) -> str:
    """One line a key."""
    rows: list[tuple[str, ...]] = [
        ("NAME", "ID", "PRIORITY", "REQUESTS/MIN", "TOKENS/MIN", "CONCURRENT", "CREATED", "EXPIRES")
    ]
    for key in keys:
        counts = (key.limits.requests_per_min, key.limits.tokens_per_min, key.limits.max_concurrent)
        expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d}"
        if key.expires is not None and key.expires <= now:
            expires = "expired"
        limits = ["-" if count is None else f"{count:,}" for count in counts]
        rows.append((key.name, key.id, key.priority.value, *limits, f"{key.created:%Y-%m-%d}", expires))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
