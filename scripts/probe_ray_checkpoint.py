"""Measures what Ray Data's CheckpointConfig gives a batch job, and where it ends (docs/decisions/0003).

    python scripts/probe_ray_checkpoint.py --out probe.json

Each driver is a process of its own with a Ray of its own: read -> map (a pause for each batch, in place of a model) ->
write_parquet. Every row computed leaves a line in a side file, so that work done twice can be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from memory_watch import MemoryWatch

Facts = Iterator[tuple[str, dict[str, Any]]]
ROWS, FILE_ROWS, BATCH_ROWS, BATCH_S = 20_000, 500, 100, 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a driver does. Its folder holds input, out, checkpoint and computed."""

    folder: str
    temporary: str = ""
    run: str = "1"
    prompt: str = "a"
    block_rows: int | None = None
    """Cut into blocks of so many rows and map in two actors; null leaves cutting and fusing to Ray Data."""
    file_rows: int | None = None
    id_column: str | None = "id"
    delete: bool = False
    sink: str = "parquet"
    poison: str | None = None
    max_errored_blocks: int = 0


def answer(batch: pa.Table, work: Work) -> pa.Table:
    """The map: takes its time and notes each row in a side file."""
    time.sleep(BATCH_S * len(batch) / BATCH_ROWS)
    ids = batch["id"].to_pylist()
    if work.poison in ids:
        raise ValueError("a poison row")
    with open(f"{work.folder}/computed/{work.run}-{os.getpid()}", "a") as stream:
        stream.write("".join(f"{value}\n" for value in ids))
    return batch.append_column("output", pa.array([work.prompt + text for text in batch["text"].to_pylist()]))


def drive(work: Work) -> None:
    """Runs the pipeline in this process. The map raises on the row whose id is `poison`."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig

    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 200 << 20, "log_to_driver": False}
    ray.init(address="local", num_cpus=4, _temp_dir=work.temporary, **options)
    context = DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, work.max_errored_blocks
    path = f"{work.folder}/checkpoint"
    context.checkpoint_config = CheckpointConfig(work.id_column, path, delete_checkpoint_on_success=work.delete)
    rows: Any = ray.data.read_parquet(f"{work.folder}/input", include_row_hash=work.id_column == "row_hash")
    if work.id_column == "made":  # after reading
        rows = rows.map_batches(lambda batch: batch.append_column("made", batch["id"]), batch_format="pyarrow")
    how: dict[str, Any] = {"fn": partial(answer, work=work)}
    if work.block_rows:
        rows = rows.repartition(target_num_rows_per_block=work.block_rows)
        actor = type("Answerer", (), {"__call__": lambda self, batch: answer(batch, work)})
        how = {"fn": actor, "compute": ActorPoolStrategy(size=2), "num_cpus": 0.5}
    answers = rows.map_batches(batch_size=BATCH_ROWS, batch_format="pyarrow", **how)
    to_parquet = partial(answers.write_parquet, min_rows_per_file=work.file_rows)
    (answers.write_json if work.sink == "json" else to_parquet)(f"{work.folder}/out")


class Driver:
    """A driver's process."""

    def __init__(self, work: Work) -> None:
        """Starts it."""
        self._work = replace(work, temporary=tempfile.mkdtemp(prefix="r"))
        self._log = Path(self._work.temporary, "log")
        self._began = time.time()
        with self._log.open("w") as log:
            words = [sys.executable, __file__, "--drive", json.dumps(asdict(self._work))]
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        self._memory = MemoryWatch(self._process.pid)

    def wait_for_first_row(self, then_s: float = 0) -> float | None:
        """Returns the seconds until the first row was computed; null where none is before the end."""
        while self._process.poll() is None and not computed(self._work, self._work.run):
            time.sleep(0.02)
        seen_s = round(time.time() - self._began, 1)
        time.sleep(then_s)
        return seen_s if computed(self._work, self._work.run) else None

    def end(self) -> dict[str, Any]:
        """Waits for its end and says what it did."""
        result: dict[str, Any] = {"first_row_s": self.wait_for_first_row()}
        code = self._process.wait()
        result |= {"wall_s": round(time.time() - self._began, 1), "peak_bytes": self._memory.end()}
        if code:
            lines, ends = self._log.read_text().splitlines(), ("Error: ", "Exception: ", "Config: ")
            result["error"] = next((x[:300] for x in reversed(lines) if any(end in x for end in ends)), lines[-1])
        else:
            result["driver_peak_bytes"] = int(Path(self._work.temporary, "peak").read_text())
        return result | audit(self._work)

    def kill(self) -> list[psutil.Process]:
        """Sends SIGKILL to the driver alone; returns the processes that were below it."""
        orphans = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        self._memory.end()
        return orphans


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; nobody may have asked for the exit code of a dead one."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def write_input(folder: str, name: str, ids: list[Any], text: str = "") -> None:
    """Writes a file of input rows."""
    Path(folder, "input").mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ids, "text": [f"{text}{i}" for i in ids]}), f"{folder}/input/{name}.parquet")


def make_work(rows: int = ROWS, **options: Any) -> Work:
    """Makes a job's folder with input rows r0, r1, ..."""
    folder = tempfile.mkdtemp()
    Path(folder, "computed").mkdir()
    for start in range(0, rows, FILE_ROWS):
        write_input(folder, f"{start:07}", [f"r{i}" for i in range(start, min(rows, start + FILE_ROWS))])
    return Work(folder=folder, **options)


def computed(work: Work, run: str = "*") -> Counter[str]:
    """Counts the rows that were computed, by id."""
    return Counter(i for path in Path(work.folder, "computed").glob(f"{run}-*") for i in path.read_text().split())


def committed(work: Work) -> list[int]:
    """Returns the number of ids in each file of the checkpoint, pending files left out."""
    files = [path for path in Path(work.folder, "checkpoint").glob("*.parquet") if ".pending" not in path.name]
    return [pq.read_metadata(path).num_rows for path in files]


def audit(work: Work) -> dict[str, Any]:
    """Compares output and input by id."""
    found: list[dict[str, Any]] = []
    unreadable = 0
    files = [path for path in Path(work.folder, "out").glob("**/*") if path.is_file()]
    for path in files:
        try:
            if path.suffix == ".parquet":
                found += pq.read_table(path).to_pylist()
            else:
                found += [json.loads(line) for line in path.read_text().splitlines()]
        except (pa.ArrowException, OSError, ValueError):
            unreadable += 1
    wanted = {row for path in Path(work.folder, "input").glob("*") for row in pq.read_table(path)["id"].to_pylist()}
    counts = Counter(row["id"] for row in found)
    return {
        "computed": computed(work, work.run).total(),
        "computed_twice": sum(count - 1 for count in computed(work).values()),
        "lost": len(wanted - set(counts)),
        "duplicated": sum(count - 1 for count in counts.values()),
        "unreadable_files": unreadable,
        "pending_files": len(list(Path(work.folder, "checkpoint").glob("*.pending*"))),
        "files": len(files),
        "commits": len(committed(work)),
        "by_prompt": Counter("changed" if "changed" in row["output"] else row["output"][0] for row in found),
    }


def run(work: Work, number: int = 1, **options: Any) -> dict[str, Any]:
    """Runs a driver to its end; again where a busy machine did not let Ray start."""
    result = Driver(replace(work, run=str(number), **options)).end()
    return run(work, number, **options) if "during startup" in result.get("error", "") else result


def kill_and_rerun(work: Work, after_s: float, wait: bool, **options: Any) -> dict[str, Any]:
    """Kills a driver some time after its first row, then runs the job again: at once, or when its workers are gone."""
    driver = Driver(work)
    while driver.wait_for_first_row(after_s) is None:
        driver = Driver(work)
    orphans, killed = driver.kill(), time.time()
    facts: dict[str, Any] = {"computed_at_kill": computed(work).total(), "committed_at_kill": sum(committed(work))}
    if wait:
        while any(map(is_alive, orphans)):
            time.sleep(0.1)
        facts["orphans_s"] = round(time.time() - killed, 1)
        facts["committed_by_orphans"] = sum(committed(work)) - facts["committed_at_kill"]
        facts["work_lost"] = computed(work).total() - sum(committed(work))
    facts |= run(work, 2, **options)
    facts["orphans_left"] = len([process.kill() for process in orphans if is_alive(process)])
    return {"after_s": round(after_s, 2), "at_once": not wait, **facts}


FORMS = {"default": {}, "blocks": {"block_rows": 500}, "files": {"block_rows": 500, "file_rows": 5000}}
"""How the work is cut. By default the second generation of data sources makes one read task of 40 small files."""


def probe_kill() -> Facts:
    """Each form without a fault, then SIGKILL of the driver at random moments and the same job again."""
    moments = random.Random(7)
    for name, form in FORMS.items():
        yield name, run(make_work(**form))
    for trial in range(1, 6):
        for name, form in FORMS.items():
            facts = kill_and_rerun(make_work(**form), moments.uniform(0.5, 7.0), wait=trial % 2 == 1)
            yield f"{name}, kill {trial}", facts


def probe_rerun() -> Facts:
    """A finished job again, then with changed and with new rows; another prompt; two drivers; an id twice."""
    for work in (make_work(delete=True), make_work()):
        run(work)
        yield f"finished, delete_checkpoint_on_success={work.delete}", run(work, 2)
    write_input(work.folder, "0000000", [f"r{i}" for i in range(FILE_ROWS)], "changed ")
    yield "500 rows changed", run(work, 3)
    write_input(work.folder, "9999999", [f"r{i}" for i in range(ROWS, ROWS + 100)])
    yield "100 rows appended", run(work, 4)
    yield "another prompt", kill_and_rerun(make_work(block_rows=500), 3, wait=True, prompt="b")
    for head_start_s in (0, 3):
        work = make_work(block_rows=500)
        first = Driver(work)
        time.sleep(head_start_s)
        yield f"two drivers, {head_start_s} s between", {"second": run(work, 2), "first": first.end()}
    work = make_work(1000)
    write_input(work.folder, "twice", [f"r{i}" for i in range(100)])
    yield "100 ids twice", run(work)


def probe_ids() -> Facts:
    """What serves as an id; JSON lines; what a row that raises does."""
    for option in ({"id_column": None}, {"id_column": "row_hash"}, {"id_column": "made"}, {"sink": "json"}):
        work = make_work(2000, **option)
        yield json.dumps(option), {"run": run(work), "rerun": run(work, 2)}
    for most in (0, -1):
        work = make_work(4000, block_rows=500, poison="r1700", max_errored_blocks=most)
        yield f"poison, max_errored_blocks={most}", {"run": run(work), "mended": run(work, 2, poison=None)}


def probe_memory() -> Facts:
    """Memory, and seconds to the first new row, with many ids in the checkpoint and 1,000 new rows in the input."""
    for count, is_text in ((0, True), (100_000, True), (1_000_000, False), (1_000_000, True), (3_000_000, True)):
        work = make_work(0, block_rows=500)
        ids: list[Any] = [f"{i * 2654435761 % 2**61:032x}" if is_text else i for i in range(count + 1000)]
        Path(work.folder, "checkpoint").mkdir()
        for start in range(0, count, 10_000):  # as if 10,000 rows had been committed at a time
            part = pa.table({"id": ids[start : start + 10_000]})
            pq.write_table(part, f"{work.folder}/checkpoint/{start:08}_0.parquet")
        for start in range(0, count + 1000, 50_000):
            write_input(work.folder, f"{start:08}", ids[start : start + 50_000])
        yield f"{count:,} {'texts' if is_text else 'integers'}", run(work)


PROBES = {"kill": probe_kill, "rerun": probe_rerun, "ids": probe_ids, "memory": probe_memory}


def main() -> int:
    """Runs the probes and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=list(PROBES))
    parser.add_argument("--out", type=Path, default=Path("probe.json"), help="where the JSON goes")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(work := Work(**json.loads(args.drive)))
        Path(work.temporary, "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))
        return 0
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "ray": version("ray"), "pyarrow": pa.__version__}
    with tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True) as tempfile.tempdir:
        for name in args.probes:
            for what, facts in PROBES[name]():
                report.setdefault(name, {})[what] = facts
                args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
