"""The device that `benchmarks.gpu` measures: what it is called, what it can, and what is taken of its memory.

Decides nothing about what is measured. On a GPU a peak is torch's own (`max_memory_allocated`), and memory can be
capped, which makes a small card of a large one; on a CPU it is this process's RssAnon, read beside the work, and
nothing is capped: there a cap is only planned with.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from worker.machine.arithmetic import multiplies_bf16

READ_EVERY_S: Final = 0.005
DENSE_BF16: Final = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""FLOP/s of dense products in bf16 that the maker states (SXM cards), by a word of the name. Others: not stated here,
and MFU is given against the product that was measured."""
PRODUCT_SIZE: Final = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """One device."""

    device: str
    name: str
    memory_bytes: int
    """All that it has; 0 on a CPU, where it is not asked for."""
    bf16: bool
    """Whether it multiplies bf16 in hardware."""

    @property
    def is_gpu(self) -> bool:
        """Whether figures of it are worth keeping."""
        return self.device != "cpu"

    @property
    def compute(self) -> torch.dtype | None:
        """What a worker on it multiplies in; None is fp32."""
        return torch.bfloat16 if self.bf16 else None

    @property
    def slug(self) -> str:
        """For a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def now(self) -> float:
        """Seconds, when everything that was asked for is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def free(self) -> None:
        """Give back what the allocator keeps."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    @property
    def stated_flops(self) -> float | None:
        """What its maker says of dense bf16 products, FLOP/s."""
        return next((flops for word, flops in DENSE_BF16.items() if word in self.name), None) if self.bf16 else None

    def product_flops(self, dtype: torch.dtype | None = None, size: int | None = None) -> float:
        """FLOP/s of one large product here and now, the best of five."""
        size = size or PRODUCT_SIZE[self.device.partition(":")[0]]
        one_NN = torch.ones((size, size), device=self.device, dtype=dtype or torch.float32)
        seconds = []
        for _ in range(6):
            started_s = self.now()
            _ = one_NN @ one_NN
            seconds.append(self.now() - started_s)
        return float(2 * size**3 / min(seconds[1:]))

    @contextlib.contextmanager
    def capped(self, memory_bytes: int | None) -> Iterator[None]:
        """As if the card had so much: more is out of memory. Nothing happens on a CPU, or without a cap."""
        if not self.is_gpu or memory_bytes is None:
            yield
            return
        self.free()
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / self.memory_bytes), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            self.free()


def where_we_are(device: str | None = None) -> Where:
    """The first GPU that torch sees, or the CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return Where(device="cpu", name="CPU", memory_bytes=0, bf16=False)
    card = device or "cuda:0"
    return Where(
        device=card,
        name=torch.cuda.get_device_name(card),
        memory_bytes=torch.cuda.get_device_properties(card).total_memory,
        bf16=multiplies_bf16(torch.device(card)),
    )


class Peak:
    """The most memory that was taken while it is open, above what was there before: `peak_bytes`, when it is closed."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._before = self._most = 0
        self.peak_bytes = 0

    def __enter__(self) -> Peak:
        if self._where.is_gpu:
            self._where.free()
            torch.cuda.reset_peak_memory_stats(self._where.device)
            self._before = torch.cuda.memory_allocated(self._where.device)
        else:
            self._before = self._most = anonymous_bytes()
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._where.is_gpu:
            self._most = torch.cuda.max_memory_allocated(self._where.device)
        else:
            self._over.set()
            self._reader.join()
            self._most = max(self._most, anonymous_bytes())
        self.peak_bytes = self._most - self._before

    def _read(self) -> None:
        while not self._over.wait(READ_EVERY_S):
            self._most = max(self._most, anonymous_bytes())


def anonymous_bytes() -> int:
    """RssAnon of this process; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0
