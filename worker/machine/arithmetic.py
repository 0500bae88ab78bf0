"""The arithmetic class of this process: what a worker says of each lease that it computes, and a replay of itself.

The one place where it is made (protocol/arithmetic.py spells it). Reads /proc/cpuinfo, torch and the GPU; writes
nothing. A processor's family and model stand in it beside the instruction set, because torch's libraries choose their
kernels by both.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from moe.padded import GROUPED
from protocol.arithmetic import ArithmeticClass

BF16_SINCE = (8, 0)
"""Compute capability. torch itself says yes of older cards too, where it is computed in fp32 and rounded."""
_OF_A_PROCESSOR = ("vendor_id", "cpu family", "model")
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def arithmetic_here(
    device: str, compute_dtype: torch.dtype | None, threads: int, experts: str = GROUPED
) -> ArithmeticClass:
    """Of what is computed on `device` (`cpu`, `cuda:1`), multiplying in `compute_dtype` (None: fp32)."""
    way = "" if experts == GROUPED else experts
    dtype = _DTYPES.get(compute_dtype or torch.float32, str(compute_dtype))
    kind = device.partition(":")[0]
    if kind == "cpu":
        chip = f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
        return ArithmeticClass(
            device=kind, chip=chip, torch=torch.__version__, dtype=dtype, threads=threads, experts=way
        )
    if dtype == "fp32" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    return ArithmeticClass(device=kind, chip=_gpu(device), torch=torch.__version__, dtype=dtype, threads=0, experts=way)


@functools.cache
def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Maker, family and model, as `GenuineIntel 6 143`; where the system does not say, what it calls the machine."""
    try:
        lines = [line.partition(":") for line in path.read_text().splitlines()]
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # the first processor's
    found = [facts[name] for name in _OF_A_PROCESSOR if facts.get(name)]
    return " ".join(found) or platform.processor() or platform.machine()


def multiplies_bf16(device: torch.device) -> bool:
    """Whether this very card has bf16 in hardware, whichever is the current one. On a CPU it is never worth it."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= BF16_SINCE


def _gpu(device: str) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"
