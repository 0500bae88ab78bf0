"""Whoever has a block and a step has the next block, bit for bit; what no step can be written of is published whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import CODECS, FP32, Codec
from protocol.deltas import published, stepped, stepped_parts
from protocol.errors import MalformedMessage
from protocol.specs import TensorSpec
from protocol.tensors import encode_tensors
from tests.live_tensors import LiveTensors

LOSSY = [codec for codec in CODECS.values() if codec.name != FP32.name]
DENORMAL, LARGEST = 1e-45, 3.4028234663852886e38
_VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, DENORMAL, -DENORMAL, 1.17549435e-38, LARGEST, -LARGEST, 1.0, 1.0 + 2**-23]
)
_BLOCKS = st.lists(st.tuples(_VALUES, _VALUES, _VALUES), min_size=0, max_size=70)


def specs_of(tensors: dict[str, Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, tuple(tensor.shape)) for name, tensor in tensors.items()]


def bits(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: tensor.contiguous().view(torch.int32).flatten().tolist() for name, tensor in tensors.items()}


def block(values: list[float]) -> dict[str, Tensor]:
    flat = torch.tensor(values, dtype=torch.float32)
    return {"scale": flat[:1].clone(), "weight": flat.reshape(1, -1)}


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
@settings(max_examples=60, deadline=None)
@given(rows=_BLOCKS)
def test_the_chain_ends_in_the_same_bits_whichever_way_it_is_taken(codec: Codec, rows: list[tuple[float, ...]]) -> None:
    first, *masters = (block([row[column] for row in rows]) for column in range(3))
    specs, base = specs_of(first), first
    chain: list[tuple[Any, Codec]] = []
    for master in masters:
        made = published(base, master, codec)
        assert all(math.isfinite(value) for tensor in made.block.values() for value in tensor.flatten().tolist())
        if made.delta is None:
            assert bits(made.block) == bits(master), "without a step the block is the master"
            chain = []
            first = made.block
        else:
            assert bits(stepped(base, made.delta, specs, codec)) == bits(made.block)
            assert made.is_exact == (bits(made.block) == bits(master))
            chain.append((made.delta, codec))
        base = made.block
    in_pieces = b"".join(bytes(piece) for piece in stepped_parts(encode_tensors(first, FP32), chain, specs))
    assert in_pieces == encode_tensors(base, FP32)


DENSE = [codec for codec in LOSSY if codec.name != "top_k"]
"""A step that leaves most coordinates out takes as many rounds as it leaves out to bring them all."""


@pytest.mark.parametrize("codec", DENSE, ids=lambda codec: codec.name)
def test_what_is_rounded_away_comes_later(codec: Codec) -> None:
    torch.manual_seed(3)
    base, aim = {"w": torch.randn(33, 65)}, {"w": torch.randn(33, 65)}
    first = float((base["w"] - aim["w"]).norm())
    for _ in range(40):  # the aim stays: all that is left is what the steps have not brought yet
        base = published(base, aim, codec).block
    assert float((base["w"] - aim["w"]).norm()) < 1e-2 * first


def test_the_sum_is_that_of_rounded_parts() -> None:
    """1 + 2**-24 lies halfway and goes to the even 1; with a step that is rounded to bf16 first, as everybody's is."""
    base, master = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0 + 2**-23, 1.0 + 3 * 2**-23])}
    made = published(base, master, CODECS["bf16"])
    assert made.block["w"].tolist() == master["w"].tolist()
    delta = encode_tensors({"w": torch.tensor([2.0**-24, 3 * 2.0**-24])}, CODECS["bf16"])
    found = stepped(base, delta, [TensorSpec("w", (2,))], CODECS["bf16"])
    assert found["w"].tolist() == [1.0, 1.0 + 2 * 2**-23]


def test_fp32_publishes_whole_blocks() -> None:
    base, master = {"w": torch.zeros(3)}, {"w": torch.full((3,), 0.1)}
    made = published(base, master, FP32)
    assert made.delta is None
    assert made.is_exact
    assert bits(made.block) == bits(master)


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
def test_a_difference_too_large_for_fp32_is_no_step(codec: Codec) -> None:
    made = published({"w": torch.tensor([LARGEST, 1.0])}, {"w": torch.tensor([-LARGEST, 2.0])}, codec)
    assert made.delta is None
    assert made.block["w"].tolist() == [-LARGEST, 2.0]


def test_a_step_of_another_size_is_refused_before_anything_is_allocated() -> None:
    base, codec = {"w": torch.zeros(4)}, CODECS["bf16"]
    delta = encode_tensors({"w": torch.ones(5)}, codec)
    with pytest.raises(MalformedMessage, match="bytes"):
        stepped(base, delta, specs_of(base), codec)
    with pytest.raises(MalformedMessage, match="bytes"):
        list(stepped_parts(encode_tensors(base, FP32), [(delta, codec)], specs_of(base)))


def test_only_what_is_exact_says_so() -> None:
    base = {"w": torch.tensor([1.0, 2.0])}
    assert published(base, {"w": torch.tensor([1.5, 2.5])}, CODECS["bf16"]).is_exact
    assert not published(base, {"w": torch.tensor([1.1, 2.5])}, CODECS["bf16"]).is_exact
    # -0.0 equals 0.0 and is another bit string, which somebody who replays would digest
    assert not published({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])}, CODECS["bf16"]).is_exact


@pytest.mark.parametrize("codec", [CODECS["int4"], CODECS["ternary"]], ids=lambda codec: codec.name)
def test_publishing_holds_the_block_and_no_more_than_a_few_tensors(codec: Codec) -> None:
    names = [f"w{number}" for number in range(40)]
    base, master = ({name: torch.randn(128, 512) for name in names} for _ in range(2))
    size = sum(tensor.nbytes for tensor in base.values())
    with LiveTensors() as live:
        made = published(base, master, codec)
    assert made.delta is not None
    assert live.peak_bytes < 1.25 * size, "the block that is published, and not the differences or the steps beside it"
