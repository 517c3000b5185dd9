"""Compiles a grammar with xgrammar, in a process of its own: ``python -m serve.engine.vllm.compiler < FIELDS``.

xgrammar takes 3 s to import, brings torch along, and lets nobody interrupt it.
"""

from __future__ import annotations

import json
import re
import sys

REFUSED = 3
"""Exit code where no grammar can be made; the reason is on stdout. Any other code but 0 says nothing of the grammar."""
_PLACE_IN_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+\.cc:\d+: ")
"""What xgrammar puts before its messages: the time, and a line of its C++."""


def compiler_message(error: BaseException) -> str:
    """Returns an error's text in one line, without the place in xgrammar's source."""
    return _PLACE_IN_SOURCE.sub("", " ".join(str(error).split()) or type(error).__name__)


def main() -> int:
    """Compiles what stands on stdin, ``{"json": SCHEMA}`` or ``{"regex": PATTERN}``; returns the exit code."""
    import xgrammar

    fields = json.loads(sys.stdin.buffer.read())
    try:
        if "json" in fields:
            xgrammar.Grammar.from_json_schema(fields["json"], any_whitespace=False)
        else:
            xgrammar.Grammar.from_regex(fields["regex"])
    except Exception as error:  # C++, which raises what it likes
        print(compiler_message(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
