"""What this machine can give: device, memory, threads, and its speed on the run's own model.

Decides how much is offered when the volunteer did not say: half of the memory that is free on a CPU, nine tenths on a
GPU. Reads the system's figures (control-group limits too, so that a container offers its own share); writes nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from moe.config import config_from_json
from moe.full import initial_blocks
from moe.layout import FROZEN, Layout
from moe.planner import ALLOCATOR_SLACK, Plan, activation_bytes, plan
from moe.shard import build_shard
from protocol.errors import ConfigError
from protocol.ids import BlockId, LeaseId, RoundNumber, Version
from worker.lease import Lease
from worker.optimizer import MUON
from worker.trainer import train_shard

CPU_SHARE = 0.5
GPU_SHARE = 0.9
PLANNED_MICRO_BATCH = 4  # sequences; columns are worth more than a larger micro-batch, but one sequence alone is slow
MAX_PROBED_BYTES = 256 << 20  # building a larger model to measure it would take longer than the first lease tells
PROBE_STEPS = 3
PROBE_BATCH = 8
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One volunteer's machine, as it is offered."""

    device: str
    device_name: str
    memory_bytes: int
    threads: int
    bf16: bool
    """Whether matrices are multiplied in bf16: only on GPUs that have it in hardware."""

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """What `moe.shard` multiplies in; None is fp32."""
        return torch.bfloat16 if self.bf16 else None

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value in the compute dtype."""
        return 2 if self.bf16 else 4

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]


def probe_machine(device: str | None = None, memory_bytes: int | None = None, threads: int | None = None) -> Machine:
    """Look at this machine; what the volunteer said overrides what was found."""
    cores = threads or available_cores()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not chosen.startswith("cuda"):
        name = f"{_processor_name()}, {cores} threads"
        return Machine(
            device="cpu", device_name=name, memory_bytes=memory_bytes or _cpu_memory(), threads=cores, bf16=False
        )
    if not torch.cuda.is_available():
        raise ConfigError(f"device {chosen}: this PyTorch sees no CUDA GPU")
    index = torch.device(chosen).index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device {chosen}: this machine has {torch.cuda.device_count()} GPUs")
    free_bytes, _ = torch.cuda.mem_get_info(index)
    return Machine(
        device=f"cuda:{index}",
        device_name=torch.cuda.get_device_name(index),
        memory_bytes=memory_bytes or int(free_bytes * GPU_SHARE),
        threads=cores,
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
    )


def available_cores() -> int:
    """Cores this process may use, which in a container or under taskset are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_memory() -> int:
    available = int(psutil.virtual_memory().available)
    try:
        limit = int(_CGROUP_LIMIT.read_text())
    except (OSError, ValueError):
        limit = available
    return int(min(available, limit) * CPU_SHARE)


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def software_versions() -> str:
    """For the operator's eye."""
    return f"barnraise {importlib.metadata.version('barnraise')}, torch {torch.__version__}, {platform.system()}"


def columns_that_fit(layout: Layout, machine: Machine, sequence_length: int, max_columns: int | None) -> Plan:
    """How many columns of this run the machine can train; ConfigError with the planner's reason when none."""
    fitting = plan(
        layout,
        machine.memory_bytes,
        batch_sequences=PLANNED_MICRO_BATCH,
        sequence_length=sequence_length,
        compute_bytes=machine.compute_bytes,
    )
    if not fitting.fits:
        fitting = plan(
            layout,
            machine.memory_bytes,
            batch_sequences=1,
            sequence_length=sequence_length,
            compute_bytes=machine.compute_bytes,
        )
    if not fitting.fits:
        raise ConfigError(f"this machine cannot train this model: {fitting.reason}")
    if max_columns is not None and layout.residency != FROZEN and max_columns < layout.top_k:
        raise ConfigError(f"this run needs at least {layout.top_k} columns a worker; max_columns is {max_columns}")
    return fitting


def micro_batch_that_fits(layout: Layout, columns: int, machine: Machine, batch: int, sequence_length: int) -> int:
    """Sequences that go through the model at once: the batch, halved until the estimate fits."""
    held_bytes = layout.training_memory_bytes(columns, compute_bytes=machine.compute_bytes)
    micro_batch = batch
    while micro_batch > 1:
        tokens = micro_batch * sequence_length
        needed = held_bytes + activation_bytes(layout, tokens, machine.compute_bytes)
        if needed * ALLOCATOR_SLACK <= machine.memory_bytes:
            break
        micro_batch = (micro_batch + 1) // 2
    return micro_batch


def measure_speed(
    layout: Layout,
    machine: Machine,
    columns: int,
    sequence_length: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Tokens a second on a freshly initialised shard of this run; 0 where the model is too large to build for this."""
    if layout.total_bytes > MAX_PROBED_BYTES:
        return 0.0
    blocks: Mapping[BlockId, Mapping[str, Tensor]] = initial_blocks(config_from_json(layout.config_json), layout, 0)
    shard = build_shard(layout, range(columns), blocks, device=machine.device, compute_dtype=machine.compute_dtype)
    vocabulary = int(layout.config_json["vocab_size"])
    batch = micro_batch_that_fits(layout, columns, machine, PROBE_BATCH, sequence_length)
    tokens_NL = np.random.default_rng(0).integers(0, vocabulary, (batch, sequence_length + 1))
    torch.set_num_threads(machine.threads)
    lease, seconds = _probe_lease(batch), []
    for _ in range(PROBE_STEPS):
        started_s = time.perf_counter()
        train_shard(shard, lease, tokens_NL, device=machine.device, should_stop=should_stop)
        seconds.append(time.perf_counter() - started_s)
    # The fastest: the first step warms caches up, and another program may have had its turn in any of them.
    return batch * sequence_length / min(seconds)


def _probe_lease(batch: int) -> Lease:
    return Lease(
        lease_id=LeaseId("probe"),
        round=RoundNumber(0),
        base_version=Version(0),
        columns=(0,),
        data_seed=0,
        data_start=0,
        data_count=batch,
        seed=0,
        inner_steps=1,
        batch_sequences=batch,
        learning_rate=1e-3,
        router_lr_scale=0.1,
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.99,
        adam_eps=1e-8,
        clip_norm=1.0,
        optimizer=MUON,
        muon_learning_rate=0.02,
        muon_momentum=0.95,
        ttl_s=60.0,
    )
