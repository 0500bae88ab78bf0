"""Slice a state dict into blocks, and merge blocks back: exact to the bit.

Decides nothing about values: it copies. Holds always: `merge_blocks(slice_blocks(state)) == state` bitwise, and two
shards that share a column hold the same bits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe.layout import Layout
from protocol.encoded_block import EncodedBlock
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, column_block

Block = dict[str, Tensor]
Blocks = dict[BlockId, Block]


def part_of(whole: Tensor, name: str, layout: Layout, expert: int) -> Tensor:
    """What that expert has of the column parameter `name`: a view of `whole`, the tensor of the state dict."""
    part = layout.family.per_expert(name)
    if part is None:
        raise LocalError(f"{name} has no part for each expert")
    if not part.flat:
        return whole.select(part.dim, expert)
    rows = whole.shape[part.dim] // layout.experts
    return whole.narrow(part.dim, expert * rows, rows)


def joined(parts: Sequence[Tensor], name: str, layout: Layout) -> Tensor:
    """The tensor `name` that these parts, one an expert and in order, make together: the inverse of `part_of`."""
    part = layout.family.per_expert(name)
    if part is None:
        raise LocalError(f"{name} has no part for each expert")
    return torch.cat(list(parts), part.dim) if part.flat else torch.stack(list(parts), part.dim)


def slice_blocks(state_dict: Mapping[str, Tensor], layout: Layout) -> Blocks:
    """Every block of the model, as tensors with memory of their own. Second names of tied weights are left out."""
    expected = {spec.name for spec in (*layout.trunk, *layout.column)}
    got = set(state_dict) - {alias for alias, _ in layout.tied}
    if got != expected:
        missing, unknown = sorted(expected - got)[:5], sorted(got - expected)[:5]
        raise LocalError(f"state dict does not fit the layout: missing {missing}, unknown {unknown}")
    whole = {name: state_dict[name].to(torch.float32) for name in layout.integers}
    blocks: Blocks = {TRUNK: {spec.name: _copy(whole.get(spec.name, state_dict[spec.name])) for spec in layout.trunk}}
    for column in range(layout.columns):
        blocks[column_block(column)] = {
            spec.name: _copy(part_of(state_dict[spec.name], spec.name, layout, layout.expert_of(column)))
            for spec in layout.specs_of(column)
        }
    check_blocks(blocks, layout)
    return blocks


def merge_blocks(blocks: Mapping[BlockId, Mapping[str, Tensor]], layout: Layout) -> dict[str, Tensor]:
    """The state dict that all blocks make together; tied weights appear under each of their names, as one tensor."""
    missing = [block for block in layout.blocks if block not in blocks]
    if missing:
        raise LocalError(f"cannot merge: blocks {missing[:5]} are missing of {len(layout.blocks)}")
    check_blocks(blocks, layout)
    state = {spec.name: _copy(blocks[TRUNK][spec.name]) for spec in layout.trunk}
    for spec in layout.column:
        rows = [blocks[column_block(column)][spec.name].detach() for column in layout.columns_with(spec.name)]
        state[spec.name] = joined(rows, spec.name, layout)
    for name in layout.integers:
        state[name] = state[name].to(torch.int64)
    for alias, name in layout.tied:
        state[alias] = state[name]
    return state


def check_blocks(blocks: Mapping[BlockId, Mapping[str, Tensor]], layout: Layout) -> None:
    """Every block holds exactly the fp32 tensors that the layout names, or LocalError says which does not."""
    for block, tensors in blocks.items():
        specs = layout.block_specs(block)
        if len(tensors) != len(specs):
            raise LocalError(f"block {block}: expected {len(specs)} tensors, got {len(tensors)}")
        for spec in specs:
            tensor = tensors.encoded(spec.name) if isinstance(tensors, EncodedBlock) else tensors.get(spec.name)
            if tensor is None:
                raise LocalError(f"block {block}: {spec.name} is missing")
            if tuple(tensor.shape) != spec.shape or tensor.dtype != torch.float32:
                got = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise LocalError(f"block {block}: {spec.name} expected float32 {spec.shape}, got {got}")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
