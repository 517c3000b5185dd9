"""Where equal requests meet: the job's claims, and a replica's way to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from conf.schema.batch import Dedupe
from conf.schema.task import Task
from pipelines.batch.former import answered
from pipelines.batch.plan import Plan
from pipelines.batch.resume import Work
from pipelines.ledger.claims import Answer, Claims
from pipelines.ledger.folder import Folder
from pipelines.ledger.log import read_history
from pipelines.ledger.outcome import encode, plain_outcome
from serve.engine.protocol import Outcome

ON_HEAD = {"node:__internal_head__": 0.001}
"""Where actors go that a job has one of: while the cluster lives, its head does."""


class ClaimsDesk:
    """Asks the actor that holds the claims; where it is gone, every request is this replica's own."""

    def __init__(self, claims: Any, replica: str, unit: str) -> None:
        """Args: the handle of a `Claims` actor, and who asks for which unit."""
        self._claims = claims
        self._holder = f"{replica}/{unit}"

    def claim(self, keys: list[bytes]) -> Answer:
        """See `Claims.claim`."""
        import ray
        from ray.exceptions import RayActorError

        try:
            return ray.get(self._claims.claim.remote(self._holder, keys))
        except RayActorError:
            return Answer(mine=keys)  # sharing saves work, it must not cost the job

    def settle(self, outcomes: list[tuple[bytes, bytes]]) -> None:
        """See `Claims.settle`. Does not wait."""
        self._claims.settle.remote(self._holder, outcomes)


class FormerClaims(Claims):
    """Claims that know what former runs have answered."""

    def __init__(self, folder: Folder, prefix: str, task: Task, scratch: str | None):
        """Reads all part files and logs: rows move to other units when the input changes."""
        super().__init__(scratch)
        self.load(_answered(folder, prefix, task))


def start_claims(plan: Plan, work: Work, scratch: Path | None) -> Any:
    """Starts the actor that holds the job's claims; null where equal requests are not shared.

    Args:
        plan: the job.
        work: what is to be done.
        scratch: where its database goes; null is its machine's temporary folder.
    """
    job = plan.job
    is_alike = job.task is not Task.generate or job.sampling.is_deterministic
    if job.batch.dedupe is Dedupe.off or work.is_redrive or (job.batch.dedupe is Dedupe.deterministic and not is_alike):
        return None
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, resources=ON_HEAD)(FormerClaims).remote(
        plan.output, job.output.prefix, job.task, scratch and str(scratch)
    )


def _answered(folder: Folder, prefix: str, task: Task) -> Iterator[tuple[bytes, bytes]]:
    names = folder.written()
    stale = [(folder.former_name(name) or "", folder.stale) for name in names]  # units that the input has lost
    for name, place in [*((name, folder) for name in names), *stale]:
        if name.startswith("part-"):
            unit = PurePosixPath(name).stem.removeprefix("part-")
            for key, outcome in answered(place, unit, prefix, task):
                yield _pair(key, outcome)
    for unit in {PurePosixPath(name).name.split(".")[0] for name in names if name.startswith("_manta/log/")}:
        for entry, outcome in read_history(folder, unit, "").outcomes.items():
            if ":" not in entry:
                yield _pair(entry, outcome)


def _pair(key: str, outcome: Outcome) -> tuple[bytes, bytes]:
    return bytes.fromhex(key), encode(plain_outcome(outcome))
