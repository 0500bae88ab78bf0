"""In which arithmetic a lease was computed: what two machines must share for the same lease to give them the same bits.

Decides how such a class is spelt and read, and which classes can be repeated to the bit; who makes one, and what a
difference between two is worth, others decide. Holds always: what cannot be read is no class, and equals none, not even
itself; nothing a stranger writes here is longer than `MAX_ARITHMETIC_CHARACTERS` or holds a character that moves a
cursor. Holds no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNKNOWN_ARITHMETIC: Final = ""
"""Nobody said, or no single class has it: a lease that was cut otherwise half way."""
MAX_ARITHMETIC_CHARACTERS: Final = 160
_THREAD_DIGITS = 6
_APART = ", "
_TORCH, _THREADS = "torch ", " threads"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticClass:
    """All that rounding depends on, besides the lease and how its batches are cut."""

    device: str
    """`cpu` or `cuda`."""
    chip: str
    """A processor's maker, family, model and instruction set as torch uses it, or a GPU's name and capability."""
    torch: str
    """Release and build."""
    dtype: str
    """What matrices are multiplied in: `fp32`, `tf32`, `bf16`."""
    threads: int
    """Of torch on a CPU: sums are cut by them. 0 on a GPU, where they change nothing."""
    experts: str = ""
    """How experts' products are taken, where that is not torch's grouped product."""

    def __str__(self) -> str:
        chip = " ".join(self.chip.replace(",", " ").split())
        products = f"{self.dtype} {self.experts}".rstrip()
        fields = (self.device, chip, _TORCH + self.torch, products, f"{self.threads}{_THREADS}")
        return _APART.join(fields)[:MAX_ARITHMETIC_CHARACTERS]

    @property
    def is_repeatable(self) -> bool:
        """Whether two machines of this class come to the same bits. Measured of CPUs (results/replay_noise.json, column
        `same`); of GPUs nobody has measured it here, and the backward pass of attention there adds in any order."""
        return self.device == "cpu"


def arithmetic_class(text: str) -> ArithmeticClass | None:
    """The class that `text` spells; None where it spells none."""
    parts = text.split(_APART)
    if not is_arithmetic(text) or len(parts) != 5:
        return None
    device, chip, torch, products, threads = parts
    dtype, _, experts = products.partition(" ")
    count = threads.removesuffix(_THREADS)
    if not torch.startswith(_TORCH) or count == threads or not (count.isdecimal() and len(count) <= _THREAD_DIGITS):
        return None
    release = torch.removeprefix(_TORCH)
    return ArithmeticClass(device=device, chip=chip, torch=release, dtype=dtype, threads=int(count), experts=experts)


def is_arithmetic(text: str) -> bool:
    """Whether it may be said at all: nothing, or printable ASCII of a bounded length."""
    return len(text) <= MAX_ARITHMETIC_CHARACTERS and text.isascii() and (text == "" or text.isprintable())
