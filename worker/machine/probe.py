"""What this machine can give: device, memory, threads, and its speed on the run's own model.

Decides how much is offered when the volunteer did not say: half of the memory that is free on a CPU, nine tenths on a
GPU, and half of the machine's beside it. Never more than is free: in a container, that is what its limits leave. A cap
on a CPU is for the whole process, so what the process takes already is not part of the offer; it is planned with. On a
GPU it caps what torch allocates there, for the rest of the process: beyond it memory is as if it were full. What fits,
`moe.planner` decides; which GPU is used, gpus.py. Reads the system's figures.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from moe.burden import GPU_RESERVE, LIBRARIES
from moe.config import config_from_json
from moe.full import initial_blocks
from moe.layout import Layout
from moe.planner import Burden, Plan, planned, schedule_for
from moe.rungs import Schedule
from moe.second_card import SecondCard
from moe.shard import build_shard
from moe.stand_ins import StandIns
from protocol.allocator import give_back_small
from protocol.codecs import BF16
from protocol.errors import ConfigError
from protocol.ids import BlockId, LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe
from protocol.residency import FROZEN
from protocol.text import human_bytes
from worker.machine.cgroups import GroupLimits, group_limits
from worker.machine.gpu_facts import gather_gpu_facts
from worker.machine.gpus import GpuFacts, choose_gpu, choose_second
from worker.machine.machine import Machine
from worker.machine.products import quickest_products
from worker.options import check_device
from worker.train.trainer import train_shard

CPU_SHARE = 0.5
GPU_SHARE = 0.9
MAX_PROBED_BYTES = 256 << 20  # building a larger model to measure it would take longer than the first lease tells
PROBE_STEPS = 3
PROBE_BATCH = 8


def probe_machine(
    device: str | None = None,
    memory_bytes: int | None = None,
    threads: int | None = None,
    *,
    others_bytes: int = 0,
    ruled: Callable[[str], int | None] = lambda _kind: None,
    gpu_facts: Callable[[], GpuFacts] = gather_gpu_facts,
    limits: Callable[[], GroupLimits] = group_limits,
    products: Callable[[str, torch.dtype | None], str] = quickest_products,
) -> Machine:
    """Look at this machine; `device` and `threads` override what is found, `memory_bytes` caps what is offered.

    `others_bytes`: what other processes of this worker take of a cap on a CPU. `ruled`: another cap, by kind of device.
    """
    check_device(device)
    left = limits()

    def capped(kind: str) -> int | None:
        return min((cap for cap in (memory_bytes, ruled(kind)) if cap is not None), default=None)

    cores = threads or available_cores(left)
    if device == "cpu":
        return _cpu(cores, capped("cpu"), left, others_bytes)
    facts = gpu_facts()
    first, _, beside = (device or "").partition(",")
    choice = choose_gpu(facts, first or None)
    if choice.index is None:
        return dataclasses.replace(_cpu(cores, capped("cpu"), left, others_bytes), notice=choice.notice)
    trial = facts.trials[choice.index]
    free_bytes, _ = torch.cuda.mem_get_info(choice.index)
    where, cap = f"cuda:{choice.index}", capped("cuda")
    machine = Machine(
        device=where,
        device_name=trial.name,
        memory_bytes=int(free_bytes * GPU_SHARE) if cap is None else min(cap, free_bytes),
        threads=cores,
        bf16=trial.bf16,
        memory_cap_bytes=cap,
        host_bytes=int(_free_bytes(left) * CPU_SHARE),
        notice=choice.notice,
        experts=products(where, torch.bfloat16 if trial.bf16 else None),
        second=_second(facts, choice.index, beside, memory_bytes),
        gpu_uuid=_uuid_of(choice.index),
    )
    hold_to_cap(machine)
    return machine


def hold_to_cap(machine: Machine) -> None:
    """On a GPU, torch allocates no more than the volunteer said, from now on in this process: the plan may be wrong, a
    volunteer's word is not."""
    if machine.gpu is not None and machine.memory_cap_bytes is not None:
        _, total_bytes = torch.cuda.mem_get_info(machine.gpu)
        torch.cuda.set_per_process_memory_fraction(min(1.0, machine.memory_cap_bytes / total_bytes), machine.gpu)


def _uuid_of(index: int) -> str:
    try:
        found = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    except (RuntimeError, AssertionError):  # a device that went away meanwhile
        return ""
    return f"GPU-{found}" if found and not found.startswith("GPU-") else found


def _second(facts: GpuFacts, first: int, device: str, cap_bytes: int | None) -> SecondCard | None:
    """A cap is each card's."""
    if not device:
        return None
    index = choose_second(facts, first, device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    if cap_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total_bytes), index)
    offered = int((free_bytes if cap_bytes is None else min(cap_bytes, free_bytes)) * GPU_SHARE)
    return SecondCard(device=f"cuda:{index}", memory_bytes=offered)


def available_cores(left: GroupLimits) -> int:
    """Cores this process may use, which in a container or under taskset are fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded down: threads above the quota use it up early, and then all of them stand still together.
    return cores if left.cpus is None else max(1, min(cores, int(left.cpus)))


def _cpu(cores: int, cap_bytes: int | None, left: GroupLimits, others_bytes: int) -> Machine:
    free_bytes = _free_bytes(left)
    process_bytes = 0 if cap_bytes is None else _process_bytes() + others_bytes
    offered = int(free_bytes * CPU_SHARE) if cap_bytes is None else min(max(0, cap_bytes - process_bytes), free_bytes)
    return Machine(
        device="cpu",
        device_name=f"{_processor_name()}, {cores} threads",
        memory_bytes=offered,
        threads=cores,
        bf16=False,
        memory_cap_bytes=cap_bytes,
        process_bytes=process_bytes,
    )


def _free_bytes(left: GroupLimits) -> int:
    free_bytes = int(psutil.virtual_memory().available)
    return free_bytes if left.memory_bytes is None else min(free_bytes, left.memory_bytes)


def _process_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def columns_that_fit(
    layout: Layout,
    machine: Machine,
    sequence_length: int,
    max_columns: int | None,
    recipe: Recipe | None = None,
    codec: str = BF16.name,
) -> Plan:
    """How many columns of this run the machine can train; ConfigError with the planner's reason when none."""
    fitting = planned(load_of(layout, machine, sequence_length, recipe=recipe, codec=codec), machine.memory)
    if not fitting.fits:
        raise ConfigError(f"this machine cannot train this model: {fitting.reason}. {_how_to_fit(machine, fitting)}")
    if max_columns is not None and layout.residency != FROZEN and max_columns < layout.top_k:
        raise ConfigError(f"this run needs at least {layout.top_k} columns a worker; max_columns is {max_columns}")
    return fitting


def holds_whole(layout: Layout, machine: Machine) -> bool:
    """Whether the whole model fits in fp32, as losses are measured in, and what passes through it."""
    return layout.total_bytes * (1.0 + GPU_RESERVE) + LIBRARIES <= machine.memory_bytes


def load_of(
    layout: Layout, machine: Machine, sequence_length: int, *, recipe: Recipe | None = None, codec: str = BF16.name
) -> Burden:
    """What is planned: this run's training, on this machine."""
    return Burden(
        layout=layout,
        recipe=recipe or Recipe(),
        sequence_length=sequence_length,
        compute_bytes=machine.compute_bytes,
        on_gpu=machine.kind != "cpu",
        codec=codec,
        second=machine.second,
    )


def _how_to_fit(machine: Machine, fitting: Plan) -> str:
    """What a volunteer whose memory is too little can do."""
    cap_bytes, own_bytes = machine.memory_cap_bytes, machine.process_bytes
    if cap_bytes is None and machine.kind == "cpu":
        own_bytes = _process_bytes()
    needed_mib = -(-(fitting.needed_bytes + own_bytes) // 2**20)
    own = f" (the worker itself takes {human_bytes(own_bytes)} of it)" if own_bytes else ""
    if cap_bytes is None:
        return f"Close other programs, or let it use more than its usual share: --memory {needed_mib}MB{own}"
    if cap_bytes >= needed_mib * 2**20:
        return "No more memory is free here: close other programs"
    return f"--memory {human_bytes(cap_bytes)} is too little: it must be {needed_mib}MB or more{own}"


def schedule_that_fits(
    layout: Layout,
    columns: int,
    machine: Machine,
    batch: int,
    sequence_length: int,
    recipe: Recipe | None = None,
    codec: str = BF16.name,
) -> Schedule:
    """How a lease of so many columns is trained here: what `columns_that_fit` counted on, or quicker."""
    return schedule_for(
        load_of(layout, machine, sequence_length, recipe=recipe, codec=codec), columns, machine.memory, batch
    )


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
    schedule = schedule_that_fits(layout, columns, machine, PROBE_BATCH, sequence_length)
    shard = build_shard(
        layout,
        range(columns),
        blocks,
        device=machine.device,
        compute_dtype=machine.compute_dtype,
        experts=machine.experts,
        stand_ins=StandIns(place=schedule.place, second=machine.second),
    )
    vocabulary, batch = int(layout.config_json["vocab_size"]), schedule.micro_batch
    shard.recompute(on=schedule.recomputed)
    by_layers = shard.layerwise(on_host=schedule.inputs_on_host) if schedule.by_layers else None
    give_back_small(on=schedule.given_back)
    tokens_NL = np.random.default_rng(0).integers(0, vocabulary, (batch, sequence_length + 1))
    torch.set_num_threads(machine.threads)
    lease, seconds = _probe_lease(batch), []
    for _ in range(PROBE_STEPS):
        started_s = time.perf_counter()
        train_shard(
            shard,
            lease,
            tokens_NL,
            device=machine.device,
            by_layers=by_layers,
            should_stop=should_stop,
            restore=_nothing,
        )
        seconds.append(time.perf_counter() - started_s)
    # The fastest: the first step warms caches up, and another program may have had its turn in any of them.
    return batch * sequence_length / min(seconds)


def _probe_lease(batch: int) -> Lease:
    return Lease(
        lease_id=LeaseId("probe"),
        round=RoundNumber(0),
        base_version=Version(0),
        columns=(0,),
        data=DataRange(seed=0, start=0, count=batch),
        seed=0,
        inner_steps=1,
        batch_sequences=batch,
        recipe=Recipe(learning_rate=1e-3, muon_learning_rate=0.02, warmup_steps=0, weight_decay=0.0),
    )


def _nothing() -> None:
    """Whatever weights there are will do to be timed with."""
