"""Whose fault it is when slow work fails: the disk's and the memory's, which blame nobody, or that of what went in.

Decides by the exception alone, and by what it was raised from. Loads no torch: its errors are known by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.engine.events import CommandTrouble
from protocol.errors import StorageTrouble

_MACHINE = (OSError, MemoryError, StorageTrouble)
_TORCH_OUT_OF_MEMORY = "OutOfMemoryError"
"""Of a GPU. On the CPU torch raises a RuntimeError, told by its words alone."""
_NO_MEMORY_WORDS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def trouble_of(error: BaseException) -> CommandTrouble:
    """Disk and memory, torch's included: `MACHINE`, worth trying again without end. All else: `CONTENT`."""
    return CommandTrouble.MACHINE if any(map(_is_machine, _causes(error))) else CommandTrouble.CONTENT


def _is_machine(error: BaseException) -> bool:
    if isinstance(error, _MACHINE) or any(kind.__name__ == _TORCH_OUT_OF_MEMORY for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY_WORDS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
