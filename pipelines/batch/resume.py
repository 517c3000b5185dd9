"""What former runs left in the output folder, and what this run has to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from conf.errors import UserError
from conf.schema.output import OnChange, OutputFormat
from pipelines.batch.plan import Plan
from pipelines.batch.prompter import check_messages
from pipelines.batch.record import plain
from pipelines.batch.source import Source, Split, pack
from pipelines.batch.unit import Unit
from pipelines.ledger.folder import JOINED, Folder
from pipelines.ledger.mark import Mark, read_marks
from pipelines.ledger.spec import JobSpec, read_spec

MIN_UNIT_ROWS = 32
UNITS_PER_REPLICA = 16
"""Units that each replica should get: enough to balance them, few enough that a unit's cost is small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A split, and its units; those that are not wanted are read past."""

    split: Split
    units: tuple[Unit, ...]
    wanted: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is done and what is to be done."""

    unit_rows: int
    units: list[str]
    """All units, in the order of the input."""
    readings: list[Reading]
    done: list[Mark]
    """Units of this input that are written, and whose records have not changed."""
    former_units: frozenset[str]
    """Units that have a part file, whether done or not."""
    is_redrive: bool = False
    """Whether rows that have failed are asked again, whatever they were asked before."""

    @property
    def pending(self) -> list[Unit]:
        """Units to be done."""
        return [unit for reading in self.readings for unit in reading.units if unit.id in reading.wanted]

    @property
    def pending_rows(self) -> int:
        """Rows of the units to be done, found answers included."""
        return sum(unit.rows for unit in self.pending)

    @property
    def done_rows(self) -> int:
        """Rows of the units that are done."""
        return sum(mark.answers + mark.failed for mark in self.done)


def open_output(plan: Plan) -> Work:
    """Looks at the output folder, prepares it for this job, and decides what is to be done. The caller holds its lease.

    Raises:
        UserError: when another job began it, or it cannot be written.
    """
    folder = plan.output
    try:
        written, former = folder.written(), _former(plan, folder)
        was_joined = former is not None and former.decides.get("output.format") == OutputFormat.openai_batch.value
        _check_strangers(plan, folder, former is not None and was_joined == _joins(plan))
        if plan.job.output.overwrite:
            _delete(folder, [*written, *(JOINED if was_joined else ())], plan.whole)
            written, former = {}, None
        return _continue(plan, folder, written, former)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"output.path={folder.root.path}: {' '.join(str(error).split())[:300]}") from error


def _former(plan: Plan, folder: Folder) -> JobSpec | None:
    try:
        return read_spec(folder)
    except ValueError:
        if plan.job.output.overwrite:  # whatever it was, it is to go
            return None
        raise


def _joins(plan: Plan) -> bool:
    return plan.format is OutputFormat.openai_batch


def _check_strangers(plan: Plan, folder: Folder, is_ours: bool) -> None:
    """Args: the job, its output, and whether a former job wrote there in the same form."""
    read = {split.location.path for split in plan.whole.splits}
    if _joins(plan) and (own := [name for name in JOINED if folder.root.join(name).path in read]):
        raise UserError(f"output.path={folder.root.path}: its {own[0]} is the input; choose another folder")
    if not is_ours and (strangers := folder.strangers(_joins(plan))):
        raise UserError(
            f"output.path={folder.root.path}: it holds {strangers[0]}, which no job of Manta wrote and answers would"
            f" {'replace' if _joins(plan) else 'be read together with'}; choose another folder"
        )


def _continue(plan: Plan, folder: Folder, written: dict[str, int], former: JobSpec | None) -> Work:
    parts = {PurePosixPath(name).stem.removeprefix("part-") for name in written if "part-" in name}
    if former is None and parts:
        raise UserError(
            f"output.path={folder.root.path}: it holds part files, but no job of Manta's to go on with; choose another,"
            " or output.overwrite=true"
        )
    if former is None:
        check_messages(plan.source, plan.job.data)
    spec = JobSpec(
        decides=plan.decides,
        unit_rows=former.unit_rows if former else _unit_rows(plan),
        job=plain(plan.job),
    )
    if former is not None and (differences := former.differences(spec)):
        if plan.job.output.on_change is OnChange.refuse:
            raise UserError(
                f"output.path={folder.root.path} holds another job: {'; '.join(differences)}. Choose another folder, or"
                " output.on_change=recompute to compute again what this changes"
            )
        for name in written:
            if name.startswith("_manta/done/"):
                folder.root.join(name).delete()
        written = {name: size for name, size in written.items() if not name.startswith("_manta/done/")}
        former = None
    if former is None:
        spec.write(folder)
    return find_work(plan, folder, written, spec.unit_rows)


def find_work(plan: Plan, folder: Folder, written: dict[str, int], unit_rows: int, is_redrive: bool = False) -> Work:
    """Compares the input's units with the done-marks.

    Args:
        plan: the job.
        folder: its output.
        written: what is there; see `Folder.written`.
        unit_rows: records of a unit.
        is_redrive: units with failed rows are to be done again, and no others.
    """
    source = pack(plan.source, unit_rows)
    cut = [(split, split.units(unit_rows, source.schema)) for split in source.splits]
    # with data.limit the last unit is cut; where all of it is done, so is its part
    whole = {
        unit.id: unit for split in pack(plan.whole, unit_rows).splits for unit in split.units(unit_rows, source.schema)
    }
    names = [unit.id for _, units in cut for unit in units]
    if len(set(names)) < len(names):
        raise UserError(f"data.input={plan.job.data.input}: two of its files have the same name; name them apart")
    written = written | _bring_back(folder, written, set(names))
    marked = (PurePosixPath(name).stem for name in written if name.startswith("_manta/done/"))
    marks = read_marks(folder, set(names).intersection(marked))
    parts = frozenset(PurePosixPath(name).stem.removeprefix("part-") for name in written if name.startswith("part-"))
    failed = frozenset(PurePosixPath(name).stem.removeprefix("part-") for name in written if name.startswith("failed/"))
    done: list[Mark] = []
    runs: dict[str, str] = {}
    readings: list[Reading] = []
    for split, units in cut:
        wanted = set()
        for unit in units:
            mark = marks.get(unit.id)
            is_done = mark is not None and mark.is_whole(folder, written)
            is_done = is_done and any(_is_of(mark, one) for one in (unit, whole.get(unit.id, unit)))
            if mark is not None and is_done:
                runs[unit.id] = mark.run
            if is_redrive and not is_done:
                raise UserError(f"data.input: {split.name} is not done or has changed; run manta batch first")
            if mark is not None and is_done and not (is_redrive and mark.failed):
                done.append(mark)
            else:
                wanted.add(unit.id)
        if wanted:
            known = tuple(replace(unit, has_former=unit.id in parts | failed) for unit in units)
            readings.append(Reading(split=split, units=known, wanted=frozenset(wanted)))
    _tidy(folder, written, runs, whole.keys())
    return Work(
        unit_rows=unit_rows,
        units=[unit.id for _, units in cut for unit in units],
        readings=readings,
        done=done,
        former_units=parts.intersection(names),
        is_redrive=is_redrive,
    )


def _bring_back(folder: Folder, written: dict[str, int], units: Collection[str]) -> dict[str, int]:
    """Moves part files back that were set aside and are of units that the input has again."""
    back: dict[str, int] = {}
    for name, size in written.items():
        former = folder.former_name(name)
        if former is not None and PurePosixPath(former).stem.removeprefix("part-") in units and former not in written:
            folder.root.join(former).write_bytes(folder.root.join(name).read_bytes())
            folder.root.join(name).delete()
            back[former] = size
    return back


def _is_of(mark: Mark | None, unit: Unit) -> bool:
    """Whether a mark is of these records, all of them: a file may have been shorter when it was read."""
    return mark is not None and mark.fingerprint == unit.fingerprint and mark.answers + mark.failed == unit.rows


def _tidy(folder: Folder, written: Iterable[str], done: dict[str, str], known: Collection[str]) -> None:
    """Drops logs of runs that have finished their units, and sets aside files of units that the input lost."""
    for name in written:
        unit, run = [*PurePosixPath(name).name.split("."), ""][:2]
        unit = unit.removeprefix("part-")
        if name.startswith("_manta/log/") and done.get(unit) == run:
            folder.root.join(name).delete()  # a crash came between the mark and this
        elif name.startswith(("part-", "failed/part-")) and unit not in known:
            folder.set_aside(name)
            folder.mark(unit).delete()


def _unit_rows(plan: Plan) -> int:
    # rounded up: a unit more than all replicas have alike would be one more for one of them
    rows = -(-plan.whole.rows // (plan.job.engine.max_replicas * UNITS_PER_REPLICA))
    return min(max(rows, MIN_UNIT_ROWS), plan.job.output.rows_per_file)


def _delete(folder: Folder, written: Iterable[str], source: Source) -> None:
    read = {split.location.path for split in source.splits}
    paths = {name: folder.root.join(name) for name in written}
    if own := sorted(place.path for place in paths.values() if place.path in read):
        raise UserError(f"output.overwrite=true would delete the input {own[0]}; choose another output.path")
    # done-marks first: a crash in between leaves nothing that looks done
    for name in sorted(paths, key=lambda name: not name.startswith("_manta/done/")):
        paths[name].delete()
