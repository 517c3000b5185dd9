"""Where a job's files lie below its output folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pyarrow import fs as pafs

from pipelines.storage import Location

_OURS = re.compile(
    r"(failed/)?part-[0-9a-f]{12}\.(parquet|jsonl)(\.\w+\.tmp)?"
    r"|_manta/(job\.json|spec\.json|report\.html)(\.\w+\.tmp)?|_manta/(logs|log|done|stale)/.*"
)
"""What a job writes, leases apart."""
JOINED = ("output.jsonl", "errors.jsonl")
"""Of requests of the OpenAI Batch shape, all answers and all errors, in the order of the input."""
SUFFIXES = ("parquet", "jsonl")
"""Of part files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """An output folder. Pickles."""

    root: Location
    suffix: str
    """Of part files: parquet or jsonl."""

    def answers(self, unit: str) -> Location:
        """The part file of a unit's answers."""
        return self.root.join(f"part-{unit}.{self.suffix}")

    def failed(self, unit: str) -> Location:
        """The part file of a unit's dead letters."""
        return self.root.join("failed", f"part-{unit}.{self.suffix}")

    def mark(self, unit: str) -> Location:
        """The file that says that a unit is done; written last."""
        return self.root.join("_manta", "done", f"{unit}.json")

    @property
    def marks(self) -> Location:
        """The folder of done-marks."""
        return self.root.join("_manta", "done")

    @property
    def log(self) -> Location:
        """The folder of the log: finished requests of units that are not done."""
        return self.root.join("_manta", "log")

    @property
    def leases(self) -> Location:
        """The folder of leases."""
        return self.root.join("_manta", "leases")

    @property
    def spec(self) -> Location:
        """What the job was asked: the one that began here."""
        return self.root.join("_manta", "spec.json")

    @property
    def record(self) -> Location:
        """What the last run came to."""
        return self.root.join("_manta", "job.json")

    @property
    def report(self) -> Location:
        """The same for a person to look at."""
        return self.root.join("_manta", "report.html")

    @property
    def logs(self) -> Location:
        """Logs of Ray, its workers and the engines."""
        return self.root.join("_manta", "logs")

    def drop_other_formats(self, unit: str) -> None:
        """Deletes a unit's part files of another format: no answer stands in two."""
        for suffix in SUFFIXES:
            if suffix != self.suffix:
                other = replace(self, suffix=suffix)
                other.answers(unit).delete()
                other.failed(unit).delete()

    @property
    def stale(self) -> Folder:
        """Where part files are that were set aside."""
        return replace(self, root=self.root.join("_manta", "stale"))

    def set_aside(self, name: str) -> None:
        """Moves a part file out of the answers: what was paid for is not deleted."""
        place = self.root.join(name)
        self.stale.root.join(name.replace("/", "-")).write_bytes(place.read_bytes())
        place.delete()

    def former_name(self, name: str) -> str | None:
        """Returns what a file that was set aside was called; null for others."""
        if not name.startswith("_manta/stale/"):
            return None
        return name.removeprefix("_manta/stale/").replace("failed-", "failed/")

    def written(self) -> dict[str, int]:
        """Lists what jobs wrote here: sizes in bytes by path below the folder. What others put here is not ours."""
        found = {}
        for entry in self.root.list(recursive=True):
            if entry.type == pafs.FileType.File:
                name = PurePosixPath(entry.path).relative_to(self.root.path).as_posix()
                if _OURS.fullmatch(name):
                    found[name] = entry.size or 0
        return found

    def strangers(self, is_joined: bool) -> list[str]:
        """Lists what no job wrote and answers would replace, or be read together with.

        Args:
            is_joined: whether answers are joined in `JOINED`, which readers then name.
        """
        names = sorted(entry.base_name for entry in self.root.list())
        if is_joined:
            return [name for name in names if name in JOINED]
        # readers of a folder leave names out that begin so; some engines write a table as a folder with a file's name
        shown = [name for name in names if not name.startswith(("_", "."))]
        return [name for name in shown if name.endswith(f".{self.suffix}") and not _OURS.fullmatch(name)]

    def name(self, place: Location) -> str:
        """Returns a location's path below the folder, as `written` has it."""
        return PurePosixPath(place.path).relative_to(self.root.path).as_posix()
