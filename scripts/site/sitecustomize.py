"""What a server's Python processes do first: imported by Python itself where this folder is in its path.

With BENCH_VLLM_NAMES they have the names of vLLM that Ray misses, see bench_vllm_names.py.

With BENCH_PROFILE=FOLDER a thread notes where the others spend their time: each 5 ms it looks at what they run, and
each 2 s it writes to FOLDER/PID.json how often it saw each function: `own` where it was the innermost, `below` where it
was anywhere on the stack. A thread that waits for events is seen waiting in `select` or `run_forever`, so counts are
wall time, not CPU.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

EVERY_S = 0.005
WRITTEN_S = 2.0


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{'/'.join(code.co_filename.rsplit('/', 3)[1:])}:{code.co_qualname}"


def _watch(folder: Path) -> None:
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    samples, written = 0, time.monotonic()
    while True:
        time.sleep(EVERY_S)
        samples += 1
        for thread, innermost in sys._current_frames().items():
            if thread == threading.get_ident():
                continue
            own[_name(innermost)] += 1
            frame: FrameType | None = innermost
            seen = set()
            while frame is not None:
                seen.add(_name(frame))
                frame = frame.f_back
            below.update(seen)
        if time.monotonic() - written > WRITTEN_S:
            written = time.monotonic()
            title = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
            found = {"title": title, "samples": samples, "own": own.most_common(80), "below": below.most_common(200)}
            path = folder / f"{os.getpid()}.json"
            path.with_suffix(".new").write_text(json.dumps(found, indent=1))
            path.with_suffix(".new").replace(path)


if wanted := os.environ.get("BENCH_PROFILE"):
    Path(wanted).mkdir(parents=True, exist_ok=True)
    threading.Thread(target=_watch, args=(Path(wanted),), daemon=True, name="profile").start()
if os.environ.get("BENCH_VLLM_NAMES"):
    import bench_vllm_names

    bench_vllm_names.install()
