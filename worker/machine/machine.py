"""One volunteer's machine as it is offered to a run: what the probe (probe.py) found, as data.

Decides nothing. Loads torch only to say in its words how the machine computes: an agent that trains in another process
handles machines, too.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe.second_card import SecondCard  # not for types alone: a machine goes from process to process by its fields

if TYPE_CHECKING:
    import torch

    from moe.planner import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One volunteer's machine, as it is offered."""

    device: str
    device_name: str
    memory_bytes: int
    """For the model and its training: what is planned with."""
    threads: int
    bf16: bool
    """Whether matrices are multiplied in bf16: only on GPUs that have it in hardware."""
    memory_cap_bytes: int | None = None
    """What the volunteer said; None: nothing."""
    host_bytes: int | None = None
    """Beside a GPU, of the machine's memory, for what is kept and sent there; None: on a CPU, or nobody looked."""
    process_bytes: int = 0
    """Of a cap on a CPU: what Python and its libraries take before anything is trained."""
    notice: str = ""
    """What the volunteer should know about a GPU that is not used."""
    experts: str = "grouped"
    """How experts' products are taken: a name of `moe.padded.EXPERT_PRODUCTS`."""
    second: SecondCard | None = None
    """Beside the GPU that trains, for experts that it does not hold and has no room for."""
    gpu_uuid: str = ""
    """As NVIDIA's driver names its GPU; empty where there is none, or it has no such name."""

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """What `moe.shard` multiplies in; None is fp32."""
        import torch

        return torch.bfloat16 if self.bf16 else None

    @property
    def memory(self) -> Memory:
        """What is planned with."""
        from moe.planner import ANY_HOST, Memory

        return Memory(self.memory_bytes, ANY_HOST if self.host_bytes is None else self.host_bytes)

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value in the compute dtype."""
        return 2 if self.bf16 else 4

    @property
    def arithmetic(self) -> str:
        """The class in which it computes leases."""
        from worker.machine.arithmetic import arithmetic_here

        return str(arithmetic_here(self.device, self.compute_dtype, self.threads, self.experts))

    @property
    def gpu(self) -> int | None:
        """The number of its GPU, as torch counts; None: it computes on the CPU."""
        return int(self.device.partition(":")[2] or 0) if self.kind == "cuda" else None

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]


@functools.cache
def software_versions() -> str:
    """For the operator's eye."""
    found = {name: importlib.metadata.version(name) for name in ("barnraise", "torch")}
    return f"{', '.join(' '.join(one) for one in found.items())}, {platform.system()}"
