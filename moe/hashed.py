"""Random bits that are an integer hash of what they are for: the same on every device, in any order, at any time.

Decides the hash, by integer arithmetic alone. Holds always: an element's bits follow from the numbers that name its
tensor and from its own place, however many are asked for together. Touches nothing.

A tensor is one row of elements, in spans of `SPAN`. A span's two words come out of SplitMix64 (Steele et al. 2014,
OOPSLA); an element's 32 bits are MurmurHash3's finalizer (Appleby 2011) of its place in the span, twice, with one word
before each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from moe.weighing import SPAN_AT_ONCE

SPAN: Final = SPAN_AT_ONCE
"""Elements that are worked on together where no more has to be in memory at once."""
_MASK_64: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def hashed_bits(named: tuple[int, ...], start: int, stop: int, device: torch.device) -> Tensor:
    """32 bits for each of the elements [start, stop) of the tensor that these numbers name: int32."""
    pieces = [
        _bits(_words(*named, first // SPAN), first % SPAN, last - first, device) for first, last in cut(start, stop)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def cut(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each span's part of these elements."""
    while start < stop:
        end = min(stop, (start // SPAN + 1) * SPAN)
        yield start, end
        start = end


def _words(*parts: int) -> tuple[int, int]:
    state = 0
    for part in parts:
        state = _split_mix(state ^ (part & _MASK_64))
    return _signed(state & 0xFFFFFFFF), _signed(state >> 32)


def _bits(words: tuple[int, int], first: int, count: int, device: torch.device) -> Tensor:
    bits_N = torch.arange(first, first + count, dtype=torch.int32, device=device)
    for word in words:
        bits_N.bitwise_xor_(word)
        _finalise(bits_N)
    return bits_N


def _finalise(bits_N: Tensor) -> None:
    """In place; products wrap, as they do in two's complement."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        # int32 is shifted arithmetically: the sign must not come along
        bits_N.bitwise_xor_((bits_N >> shift).bitwise_and_((1 << (32 - shift)) - 1))
        if factor is not None:
            bits_N.mul_(_signed(factor))


def _split_mix(state: int) -> int:
    state = (state + _GOLDEN) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return state ^ (state >> 31)


def _signed(word: int) -> int:
    """The int32 that has these 32 bits."""
    return word - (1 << 32) if word >= 1 << 31 else word
