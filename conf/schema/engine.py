"""How the model runs: device, partitioning, replicas, batching."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from conf.errors import UserError
from conf.schema.service import ServiceSpec


class EngineKind(Enum):
    """Which adapter answers: vLLM, onnxruntime or llama.cpp (``gguf``) in the replica, a ``service`` elsewhere, or
    nothing but a ``fake``.
    """

    vllm = "vllm"
    onnx = "onnx"
    gguf = "gguf"
    fake = "fake"
    service = "service"


class Device(Enum):
    """Where an engine runs; ``auto`` is CUDA where the cluster has a GPU, else the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class EngineProcess(Enum):
    """Where the engine's core loop lives.

    ``inline`` is a thread of the replica (one import of vLLM, no serialisation between processes: best on CPU),
    ``separate`` a process of its own (detokenising overlaps with the device's steps: best on a GPU).
    ``auto`` picks by device.
    """

    auto = "auto"
    inline = "inline"
    separate = "separate"


class Sizing(Enum):
    """Who chooses the engine's sizes: ``given`` takes them as they stand.

    ``planned`` takes a sample of the input before the job and chooses what `manta plan` would: TP x PP, engines a
    device, replicas, max_num_seqs. What differs from its default stays.
    """

    given = "given"
    planned = "planned"


@dataclass(kw_only=True, slots=True)
class FaultSpec:
    """Faults the fake engine injects. Row markers are looked for in the prompt's text."""

    reject_marker: str | None = None
    """A prompt that contains it is rejected."""
    die_marker: str | None = None
    """A prompt that contains it kills the engine."""
    die_after: int = 0
    """The engine dies once, after this many completions; 0 is never. Needs ``die_once_file``."""
    die_once_file: str | None = None
    """A local file that remembers that the engine has died, so that its successor lives."""
    latency_ms: float = 0.0
    """Time from request to completion, in milliseconds."""
    fail_start: bool = False
    """The engine fails to start."""
    slow_start_file: str | None = None
    """A local file that the first engine to start makes; it is ready when somebody has removed the file."""
    hang_marker: str | None = None
    """A prompt that contains it is never answered, nor is any other from then on."""
    kill_marker: str | None = None
    """A prompt that contains it ends the replica's process with SIGKILL, as the kernel does where memory is out."""

    computed_file: str | None = None
    """A local file to which the engine appends a line, a hash of the prompt, for each request that it answers."""

    def __post_init__(self) -> None:
        for key in ("die_after", "latency_ms"):
            if not getattr(self, key) >= 0:
                raise UserError(f"engine.fault.{key} must be >= 0, got {getattr(self, key)}")
        if self.die_after and not self.die_once_file:
            raise UserError(f"engine.fault.die_after={self.die_after} needs engine.fault.die_once_file")


@dataclass(kw_only=True, slots=True)
class EngineSpec:
    """A pool of equal engines on num_replicas x tensor_parallel_size x pipeline_parallel_size devices."""

    kind: EngineKind = EngineKind.vllm
    device: Device = Device.auto
    process: EngineProcess = EngineProcess.auto
    sizing: Sizing = Sizing.given
    """Who chooses the sizes that stand at their defaults: nobody, or what manta plan would choose."""
    num_replicas: str = "1"
    """Engines in the pool: a number, or MIN..MAX: of a job as many as the rows are worth and the cluster holds, of a
    service as many as its load needs (autoscale); there MIN may be 0."""
    tensor_parallel_size: int = 1
    """Devices that share each layer."""
    pipeline_parallel_size: int = 1
    """Groups of devices that share the layers."""
    max_model_len: int | None = None
    """Context in tokens, prompt and answer together; the model's own where null."""
    engines_per_device: int = 1
    """Engines that share a GPU, each with kv_cache_bytes of it: a small model does not fill one."""
    max_num_seqs: int = 256
    """Sequences that one engine computes at a time."""
    max_in_flight: int | None = None
    """Rows that one replica holds at a time, waiting ones included; twice max_num_seqs where null."""
    kv_cache_bytes: int | None = None
    """Memory for the KV cache of each device; where null 1 GiB on CPU, and on a GPU what vLLM finds free."""
    max_restarts: int = 8
    """Engines that may die one after another, with no row answered in between, before the job gives up."""
    hang_timeout_s: float = 600.0
    """An engine that holds rows and answers none for so long counts as dead."""
    start_timeout_s: float = 900.0
    """How long a replica may take to load its model."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the replicas. Not for secrets: it is kept in the job's record."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Passed to vLLM's engine arguments under vLLM's own names."""
    service: ServiceSpec = field(default_factory=ServiceSpec)
    fault: FaultSpec = field(default_factory=FaultSpec)

    def __post_init__(self) -> None:
        _replicas(self.num_replicas)
        if self.kind is EngineKind.service:
            self._check_service()
        for key in ("tensor_parallel_size", "pipeline_parallel_size", "engines_per_device", "max_num_seqs"):
            if getattr(self, key) < 1:
                raise UserError(f"engine.{key} must be >= 1, got {getattr(self, key)}")
        for key in ("max_model_len", "max_in_flight", "kv_cache_bytes"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"engine.{key} must be >= 1 or null, got {value}")
        for key in ("start_timeout_s", "hang_timeout_s"):
            if not getattr(self, key) > 0:
                raise UserError(f"engine.{key} must be > 0, got {getattr(self, key)}")
        if self.max_restarts < 0:
            raise UserError(f"engine.max_restarts must be >= 0, got {self.max_restarts}")
        if self.engines_per_device > 1 and self.world_size > 1:
            raise UserError(
                f"engine.engines_per_device={self.engines_per_device} goes with engines on one device, not on"
                f" {self.world_size} (tensor_parallel_size x pipeline_parallel_size)"
            )
        if self.engines_per_device > 1 and self.kv_cache_bytes is None:
            raise UserError(
                f"engine.engines_per_device={self.engines_per_device} needs engine.kv_cache_bytes: engines that share a"
                " GPU cannot each find out what is free"
            )
        is_many = self.vllm.get("distributed_executor_backend") == "ray"
        if self.is_elastic and is_many:
            raise UserError(
                f"engine.num_replicas={self.num_replicas} must be a number where a replica lies on several nodes"
                " (engine.vllm.distributed_executor_backend=ray)"
            )

    def _check_service(self) -> None:
        """What another process computes has no sizes here."""
        if self.sizing is not Sizing.given:
            raise UserError("engine.sizing=planned has no use with engine=service: the service has its sizes")
        for name in self.vllm:
            raise UserError(f"engine.vllm.{name} has no use with engine=service: the service was started without it")
        if self.world_size > 1 or self.engines_per_device > 1:
            raise UserError("engine=service has no devices: leave the engine's sizes at 1")

    @property
    def min_replicas(self) -> int:
        """The smallest pool that a job may run with."""
        return _replicas(self.num_replicas)[0]

    @property
    def max_replicas(self) -> int:
        """The largest pool."""
        return _replicas(self.num_replicas)[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the pool's size follows the work."""
        return self.min_replicas < self.max_replicas

    @property
    def world_size(self) -> int:
        """Devices of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def in_flight_rows(self) -> int:
        """Rows that one replica holds at a time."""
        return self.max_in_flight or 2 * self.max_num_seqs


def _replicas(text: str) -> tuple[int, int]:
    """The ends of ``N`` or ``MIN..MAX``."""
    low, dots, high = str(text).partition("..")
    try:
        ends = int(low), int(high if dots else low)
    except ValueError:
        ends = (0, 0)
    if not 0 <= ends[0] <= ends[1] or not ends[1]:
        raise UserError(f"engine.num_replicas must be a number >= 1, or MIN..MAX of such, got '{text}'")
    return ends
