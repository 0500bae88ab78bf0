"""One decoder to be fuzzed: what it may do with any bytes, and how bytes are made that get far into it.

A target's `decode` gets arbitrary bytes and may do nothing but return or raise one of its `refusals`. `growth` bounds
what it may allocate on the way: so many bytes for each byte of input, and `base_bytes` whatever the input. Where a
signature, checksum or canonical form stands before the decoder, `seal` makes it right again after the mutation, so
that the decoder behind it sees mutated bytes too; one input in four is sealed first and then mutated.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from tests.fuzz.mutate import Mutate, mutated

Errors = tuple[type[Exception], ...]

_UNSEALED_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder."""

    name: str
    decode: Callable[[bytes], object]
    refusals: Errors
    samples: Callable[[], Sequence[bytes]]
    """Valid content, before it is sealed."""
    mutate: Mutate = mutated
    seal: Callable[[bytes], bytes] | None = None
    growth: int = 64
    """Bytes that may be allocated for each byte of input."""
    base_bytes: int = 256 * 1024

    def valid(self) -> list[bytes]:
        """Inputs that are taken."""
        samples = list(self.samples())
        return samples if self.seal is None else [self.seal(sample) for sample in samples]


class Source:
    """The inputs of one target, by number: the same number, and seed, give the same input."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target = target
        self._seed = seed
        self._samples = list(target.samples())
        self._valid = target.valid()
        self._random = Random()

    def __getitem__(self, number: int) -> bytes:
        random, target = self._random, self._target
        random.seed(self._seed << 40 | number)
        if target.seal is None:
            return target.mutate(random, self._samples)
        if random.random() < _UNSEALED_SHARE:
            return mutated(random, self._valid)
        return target.seal(target.mutate(random, self._samples))


@cache
def scratch() -> Path:
    """A folder for decoders of files; in memory where there is such a place, or a million inputs wait for the disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="barnraise-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
