"""What Python's garbage collector need not look at."""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Has the collector leave alone what is there now; to be called once an engine has started, as vLLM's server does.

    Else it walks through all that torch, vLLM and Ray have loaded again and again: 38 us a row of a batch job, and a
    full walk stops every stream for as long as it takes.
    """
    gc.collect()
    gc.freeze()
