"""What a GPU, or a CPU in its place, can do."""

from __future__ import annotations

from dataclasses import dataclass

GIGA, TERA, GIB = 1e9, 1e12, 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device of many that are alike.

    Args:
        name: as it is shown.
        is_cpu: whether this stands for a process on a CPU.
        memory_gib: that a process can have.
        reserved_gib: of these, for what holds no tensor: the CUDA context, communication buffers, fragmentation.
        engine_scratch_gib: of vLLM's share, for its forward passes and CUDA graphs.
        peak_tflops: dense matrix products in bfloat16 (without sparsity), in 10¹² operations a second.
        float32_tflops: the same in float32.
        bandwidth_gb: of the memory, in 10⁹ bytes a second.
        node_gb: to another device of the node, one way.
        network_gb: to a device of another node, one way, each device's share.
        per_node: devices in a node, of which a run takes all unless it says how many.
        compute_efficiency: share of the peak that a training pass reaches.
        bandwidth_efficiency: share of the memory's bandwidth that decoding reaches.
        network_efficiency: share of either link that a collective reaches.
        cores: of the host, for each device, that credit's clusters can be worked out on.
    """

    name: str
    memory_gib: float
    peak_tflops: float
    float32_tflops: float
    bandwidth_gb: float
    node_gb: float
    network_gb: float
    per_node: int = 8
    is_cpu: bool = False
    reserved_gib: float = 3.0
    engine_scratch_gib: float = 4.0
    compute_efficiency: float = 0.4
    bandwidth_efficiency: float = 0.6
    network_efficiency: float = 0.7
    cores: float = 8.0

    def __post_init__(self) -> None:
        for field in (
            "memory_gib",
            "peak_tflops",
            "float32_tflops",
            "bandwidth_gb",
            "node_gb",
            "network_gb",
            "per_node",
        ):
            if getattr(self, field) <= 0:
                raise ValueError(f"hardware.{field} must be above 0, got {getattr(self, field)}")
        for field in ("compute_efficiency", "bandwidth_efficiency", "network_efficiency"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"hardware.{field} must be in (0, 1], got {getattr(self, field)}: it is a share")
        for field in ("reserved_gib", "engine_scratch_gib", "cores"):
            if getattr(self, field) < 0:
                raise ValueError(f"hardware.{field} must be 0 or more, got {getattr(self, field)}")

    @property
    def memory(self) -> float:
        """In bytes."""
        return self.memory_gib * GIB

    @property
    def reserved(self) -> float:
        """In bytes."""
        return self.reserved_gib * GIB

    @property
    def engine_scratch(self) -> float:
        """In bytes."""
        return self.engine_scratch_gib * GIB

    def operations(self, compute_bytes: int) -> float:
        """A second, that a training pass reaches."""
        return (self.float32_tflops if compute_bytes == 4 else self.peak_tflops) * TERA * self.compute_efficiency

    @property
    def bandwidth(self) -> float:
        """Bytes a second that decoding reads."""
        return self.bandwidth_gb * GIGA * self.bandwidth_efficiency

    def link(self, *, across_nodes: bool) -> float:
        """Bytes a second, one way, of a collective within a node, or across several: the slowest link counts."""
        slowest = min(self.node_gb, self.network_gb) if across_nodes else self.node_gb
        return slowest * GIGA * self.network_efficiency
