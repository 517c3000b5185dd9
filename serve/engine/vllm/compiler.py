"""Compiles a grammar with xgrammar, in a process of its own: ``python -m serve.engine.vllm.compiler < FIELDS``.

xgrammar takes 3 s to import, brings torch along, and lets nobody interrupt it. vLLM, which takes 8, is asked where a
schema has what it may refuse: some of what xgrammar passes over in silence.
"""

from __future__ import annotations

import json
import re
import sys

REFUSED = 3
"""Exit code where no grammar can be made; the reason is on stdout. Any other code but 0 says nothing of the grammar."""
MAY_REFUSE = (
    *("allOf", "contains", "format", "maxContains", "minContains", "multipleOf", "pattern", "patternProperties"),
    *("propertyNames", "uniqueItems"),
)
"""Source: vllm/v1/structured_output/backend_xgrammar.py, has_xgrammar_unsupported_json_features (0.32)."""
OTHER_COMPILER = " (engine.vllm.structured_outputs_config.backend=guidance takes others)"
"""What to do about what xgrammar does not keep."""
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
    if "json" in fields and (found := _passed_over(fields["json"])):
        print(f"xgrammar does not keep {' or '.join(found)} as it is used here{OTHER_COMPILER}")
        return REFUSED
    return 0


def _passed_over(schema: str) -> list[str]:
    """Keywords of which vLLM refuses one; none where it refuses none, or nothing can be said."""
    found = [name for name in MAY_REFUSE if f'"{name}"' in schema]
    if not found:
        return []
    try:
        from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features
    except ImportError:  # no vLLM here, or another version's
        return []
    return found if has_xgrammar_unsupported_json_features(json.loads(schema)) else []


if __name__ == "__main__":
    sys.exit(main())
