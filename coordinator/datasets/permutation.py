"""A seeded permutation of 0..n-1 that is never written down: position in, sequence number out.

Decides which stored sequence stands at which position of an epoch. A balanced Feistel network over the smallest even
number of bits that covers n is a bijection whatever its round function is (Luby and Rackoff 1988); values that fall
outside n are walked along their cycle until they come back inside (Black and Rogaway 2002), fewer than 4 steps on
average. The result depends on seed, n and nothing else: not on the machine, numpy's version or the range asked for.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
"""Four rounds are enough for pseudo-randomness (Luby-Rackoff); eight also hide the weakness of a cheap mixer."""

_U64 = np.uint64
_MIX_A, _MIX_B = _U64(0xBF58476D1CE4E5B9), _U64(0x94D049BB133111EB)
"""Multipliers of the splitmix64 finaliser (Steele, Lea and Flood 2014)."""


def permuted(seed: int, size: int, start: int, count: int) -> NDArray[np.int64]:
    """What stands at positions [start, start + count) of the permutation of `size` items that `seed` names."""
    if not 0 <= start <= start + count <= size:
        raise ValueError(f"positions {start} to {start + count} are not within a permutation of {size}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2) if size > 1 else 1
    keys = _round_keys(seed, size)
    values_N = _feistel(np.arange(start, start + count, dtype=_U64), keys, half_bits)
    outside_M = np.flatnonzero(values_N >= _U64(size))
    while outside_M.size:
        values_N[outside_M] = _feistel(values_N[outside_M], keys, half_bits)
        outside_M = outside_M[values_N[outside_M] >= _U64(size)]
    return values_N.astype(np.int64)


def _feistel(values_N: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int) -> NDArray[np.uint64]:
    mask, shift = _U64((1 << half_bits) - 1), _U64(half_bits)
    left_N, right_N = values_N >> shift, values_N & mask
    for key in keys:
        left_N, right_N = right_N, left_N ^ (_mix(right_N + key) & mask)
    return (left_N << shift) | right_N


def _mix(values_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser; arithmetic on uint64 arrays wraps, which is what is wanted."""
    values_N = (values_N ^ (values_N >> _U64(30))) * _MIX_A
    values_N = (values_N ^ (values_N >> _U64(27))) * _MIX_B
    return values_N ^ (values_N >> _U64(31))


def _round_keys(seed: int, size: int) -> NDArray[np.uint64]:
    """Round keys by SHA-256 of seed and size; a seed may be any whole number below 2^64."""
    stream = hashlib.shake_256(b"barnraise-permutation-v1" + struct.pack(">QQ", seed, size)).digest(8 * ROUNDS)
    return np.frombuffer(stream, dtype=">u8").astype(_U64)
