"""Where an engine's ranks go: resources of a replica, and the cores of each rank."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from typing import Any

from conf.schema.engine import Device, EngineKind, EngineSpec

FEW_CORES = 2
"""Of so many an engine in a process of its own takes all, though its replica computes too; see docs/decisions/0026."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What one replica asks the cluster for."""

    bundles: list[dict[str, float]]
    """One for each node that it must be on; a placement group's bundles."""
    strategy: str
    """How the bundles are spread, in Ray's words."""

    @property
    def total(self) -> dict[str, float]:
        """Resources of the whole replica."""
        names = {name for bundle in self.bundles for name in bundle}
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in sorted(names)}


def place(spec: EngineSpec, device: Device) -> Placement:
    """Decides the bundles of one replica.

    vLLM's ``mp`` executor starts all ranks from the replica's own process, so they share a bundle on one node.
    With ``engine.vllm.distributed_executor_backend=ray`` each rank is an actor with a bundle of its own, and ranks may
    lie on several nodes; a further bundle then holds the replica's process.
    """
    ranks = spec.world_size
    if device is Device.cpu:
        return Placement(bundles=[{"CPU": float(ranks if spec.kind is EngineKind.vllm else 1)}], strategy="STRICT_PACK")
    if spec.vllm.get("distributed_executor_backend") == "ray":
        return Placement(bundles=[{"CPU": 1.0}, *({"CPU": 1.0, "GPU": 1.0} for _ in range(ranks))], strategy="PACK")
    return Placement(bundles=[{"CPU": 1.0, "GPU": ranks / spec.engines_per_device}], strategy="STRICT_PACK")


def devices_per_engine(spec: EngineSpec, device: Device, share: int) -> float:
    """Returns the devices that one engine is paid for: GPUs, or on CPU its part of the machine; 0 of a service's.

    Args:
        spec: the engine.
        device: where it runs, decided.
        share: engines that share a machine's cores.
    """
    if spec.kind is EngineKind.service:
        return 0.0
    return spec.world_size / spec.engines_per_device if device is Device.cuda else 1 / share


def fitting(placement: Placement, resources: dict[str, float]) -> int:
    """Returns how many replicas a cluster holds beside a reader.

    Args:
        placement: what one replica asks for.
        resources: all that the cluster has.
    """
    rooms = []
    for name, amount in placement.total.items():
        have = resources.get(name, 0) - (1 if name == "CPU" else 0)
        rooms.append(int(have / amount + 1e-9) if amount else sys.maxsize)
    return max(0, min(rooms))


class ReplicaActors:
    """Ray actor options of the replicas, in placement groups where they are partitioned."""

    def __init__(self, placement: Placement, num_replicas: int, is_partitioned: bool) -> None:
        """Reserves a placement group for each replica.

        Args:
            placement: what one replica asks for.
            num_replicas: how many there are.
            is_partitioned: whether a replica's ranks are reserved together, before it starts.
        """
        self._placement = placement
        self._groups: list[Any] = []
        if is_partitioned:
            import ray

            make = ray.util.placement_group
            self._groups = [make(placement.bundles, strategy=placement.strategy) for _ in range(num_replicas)]
        self._next = itertools.cycle(self._groups)

    @property
    def is_reserved(self) -> bool:
        """Whether replicas go to placement groups."""
        return bool(self._groups)

    @property
    def num_cpus(self) -> float:
        """CPUs of the replica's own process."""
        return self._placement.bundles[0].get("CPU", 0.0)

    @property
    def num_gpus(self) -> float | None:
        """GPUs of the replica's own process; null for none."""
        return self._placement.bundles[0].get("GPU")

    def __call__(self) -> dict[str, Any]:
        """Returns the options of the next replica. Reserves nothing: Ray Data asks more often than it starts one."""
        if not self._groups:
            return {}
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(
            next(self._next), placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        return {"scheduling_strategy": strategy}

    def release(self) -> None:
        """Gives the placement groups back that are left. Ray keeps them until the driver ends (ray#64035)."""
        if not self._groups:
            return
        import ray

        for group in self._groups:
            ray.util.remove_placement_group(group)
        self._groups.clear()


def has_few_cores() -> bool:
    """Says whether this process may use so few cores that one engine takes all of them."""
    return len(os.sched_getaffinity(0)) <= FEW_CORES


def cpu_threads(ranks: int, share: int, is_inline: bool) -> dict[str, str]:
    """Returns the environment that divides this machine's cores among CPU ranks.

    Args:
        ranks: ranks of this engine.
        share: engines on this machine.
        is_inline: whether the engine computes in the replica's own process.
    """
    cores = sorted(os.sched_getaffinity(0))
    if ranks > 1:
        # every rank needs cores of its own; without a list vLLM asserts on the number of NUMA nodes
        groups = [cores[rank::ranks] or [cores[rank % len(cores)]] for rank in range(ranks)]
        return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, group)) for group in groups)}
    if share > 1:
        # bound, all engines would sit on the same first cores
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, len(cores) // share))}
    if not is_inline and has_few_cores():
        # vLLM would leave a core to all others, who need a third of it; threads that wait must not spin on it then
        return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "OMP_WAIT_POLICY": "passive"}
    return {}
