"""A slice of TPU v5e or v6e: its hosts, what Ray calls it, and what an engine over it is told.

Source: ray 2.60, ray/_private/accelerators/tpu.py (`get_chips_per_host`, `infer_tpu_pod_type_from_topology`) and the
guide "TPU serving" of Ray Serve LLM. A test holds these figures against Ray's functions. Not run on hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from conf.schema.hardware import HardwareSpec, profiles
from conf.schema.node_type import NodeTypeSpec

MULTI_HOST_CHIPS = 4
"""Chips of each host, where there are several."""
SINGLE_HOST_CHIPS = 8
"""A slice of so many chips at most lies on one host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TpuSlice:
    """Chips that are joined without a network between them."""

    profile: HardwareSpec
    topology: str

    @property
    def num_chips(self) -> int:
        """Chips of the slice."""
        return prod(int(side) for side in self.topology.split("x"))

    @property
    def chips_per_host(self) -> int:
        """What each host holds: its Ray resource TPU, and google.com/tpu of its pod."""
        return self.num_chips if self.num_chips <= SINGLE_HOST_CHIPS else MULTI_HOST_CHIPS

    @property
    def num_hosts(self) -> int:
        """Hosts of the slice."""
        return self.num_chips // self.chips_per_host

    @property
    def pod_type(self) -> str:
        """The slice's name, such as v6e-16: v5e and v6e have one core a chip."""
        return f"{self.profile.tpu_generation}-{self.num_chips}"

    @property
    def head_resource(self) -> str:
        """What the first host of the slice holds one of, so that a slice is taken as a whole."""
        return f"TPU-{self.pod_type}-head"

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """What vLLM is told of the slice: each layer lies on all of its chips; Ray starts ranks on other hosts."""
        arguments: dict[str, Any] = {"tensor_parallel_size": self.num_chips}
        if self.num_hosts > 1:
            arguments["distributed_executor_backend"] = "ray"
        return arguments


def slice_of(node: NodeTypeSpec) -> TpuSlice:
    """Returns the slice that a kind of machine is; it must be one."""
    assert node.topology is not None
    return TpuSlice(profile=profiles()[node.hardware], topology=node.topology)
