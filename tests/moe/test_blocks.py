from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.blocks import merge_blocks, slice_blocks
from moe.full import full_model, initial_blocks
from moe.layout import layout
from moe.shard import build_shard
from protocol.errors import LocalError
from protocol.ids import TRUNK, column_block
from protocol.residency import ABSENT

CASES = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_bits(shape, generator):
    """Any fp32 bit pattern: NaNs with payloads, infinities, subnormals and both zeros among them."""
    return (
        torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64)
        .to(torch.int32)
        .view(torch.float32)
    )


def same_bits(left, right):
    return left.shape == right.shape and bool((left.view(torch.int32) == right.view(torch.int32)).all())


def random_state(cut, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {spec.name: random_bits(spec.shape, generator) for spec in cut.trunk}
    state |= {spec.name: random_bits((cut.columns, *spec.shape), generator) for spec in cut.column}
    return state | {alias: state[name] for alias, name in cut.tied}


@CASES
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_slicing_into_overlapping_shards_and_merging_is_bit_identical(config, residency, data, seed):
    cut = layout(config, residency)
    state = random_state(cut, seed)
    blocks = slice_blocks(state, cut)
    fewest = cut.top_k if residency == ABSENT else 1
    columns = st.sets(st.integers(0, cut.columns - 1), min_size=fewest)
    shards = data.draw(st.lists(columns, min_size=1, max_size=4))
    left_over = sorted(set(range(cut.columns)) - set().union(*shards))
    shards.append(set(left_over) | set(range(fewest)))
    merged: dict[Any, Any] = {}
    for held in shards:
        given_blocks = {block: blocks[block] for block in cut.needed_blocks(held)}
        for block, tensors in build_shard(cut, held, given_blocks).held_blocks().items():
            # Shards that overlap agree on what they share.
            assert all(same_bits(merged[block][name], tensor) for name, tensor in tensors.items() if block in merged)
            merged[block] = tensors
    again = merge_blocks(merged, cut)
    assert again.keys() == state.keys()
    assert all(same_bits(again[name], state[name]) for name in state)


def test_merged_state_loads_strictly_into_the_plain_model(config, residency):
    cut = layout(config, residency)
    blocks = initial_blocks(config, cut, 3)
    model = full_model(cut, blocks)
    fresh = type(model)(config)
    fresh.load_state_dict(merge_blocks(blocks, cut), strict=True)
    again = slice_blocks(fresh.state_dict(), cut)
    assert all(same_bits(blocks[block][name], again[block][name]) for block in blocks for name in blocks[block])


def test_blocks_have_memory_of_their_own(config):
    cut = layout(config, "frozen")
    state = random_state(cut, 1)
    before = {name: tensor.clone() for name, tensor in state.items()}
    for tensors in slice_blocks(state, cut).values():
        for tensor in tensors.values():
            tensor.zero_()
    assert all(same_bits(state[name], before[name]) for name in state)


def test_what_does_not_fit_the_layout_is_named(config):
    cut = layout(config, "frozen")
    blocks = slice_blocks(random_state(cut, 1), cut)
    with pytest.raises(LocalError, match=r"column\.1.*missing"):
        merge_blocks({block: blocks[block] for block in cut.blocks if block != column_block(1)}, cut)
    name = cut.trunk[0].name
    wrong = {**blocks, TRUNK: {**blocks[TRUNK], name: blocks[TRUNK][name].double()}}
    with pytest.raises(LocalError, match=f"{name} expected float32"):
        merge_blocks(wrong, cut)
    with pytest.raises(LocalError, match="unknown"):
        slice_blocks({**random_state(cut, 1), "stranger": torch.zeros(1)}, cut)
