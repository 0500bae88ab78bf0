"""Which parameters of a model are trunk and which belong to which expert column, with shapes and bytes.

Decides how a model is cut into blocks; touches nothing and allocates nothing (shapes come from torch's meta device).
A layout that was made can be read without torch: only making one, or one whose trunk is trained in part, loads it.
Holds always: every parameter and every persistent buffer lies in exactly one block; tied weights are counted once,
under the first of their names; all columns take the same bytes. A column block's entry `NAME` is the part of expert e
in the tensor `NAME` of the state dict (`moe.blocks.part_of`).

Where a column is too large for the machines of a run, it is cut into G parts by groups of layers, which then are what
is leased, held, sent and averaged: column `G * e + g` is what expert e has in the layers of group g. All else counts
columns and knows nothing of it (docs/decisions/0070).

Residency: in `frozen` the routers are trunk; in `absent` row e of every router belongs to column e.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from moe.families import Family, PerExpert, family_named
from protocol.errors import ConfigError, LocalError
from protocol.ids import TRUNK, BlockId, column_block, column_of
from protocol.lease import ALL_OF_TRUNK, TrunkPart
from protocol.recipe import WHOLE_TRUNK
from protocol.residency import ABSENT, FROZEN, RESIDENCIES
from protocol.specs import TensorSpec, submission_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FP32_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One tensor of a block. Blocks are always fp32: they are what is averaged."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def payload_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * FP32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model, cut into the trunk and `columns` expert columns, or parts of such."""

    config_json: Mapping[str, Any]
    residency: str
    trunk: tuple[ParamSpec, ...]
    parts: tuple[tuple[ParamSpec, ...], ...]
    """Specs of each part of an expert's column: one, unless columns are cut by groups of layers."""
    columns: int
    """As many as blocks: of each expert as many as there are parts."""
    top_k: int
    tied: tuple[tuple[str, str], ...]
    """(name that repeats a tensor, name under which the trunk holds it)."""
    integers: tuple[str, ...] = ()
    """Tensors of the trunk that the model holds as whole numbers; blocks have them in fp32, exactly."""

    @property
    def column(self) -> tuple[ParamSpec, ...]:
        """Specs of all that one expert has."""
        return tuple(spec for part in self.parts for spec in part)

    @property
    def experts(self) -> int:
        """How many there are in a layer."""
        return self.columns // len(self.parts)

    def expert_of(self, column: int) -> int:
        """Whose part that column is."""
        return column // len(self.parts)

    def specs_of(self, column: int) -> tuple[ParamSpec, ...]:
        """What that column holds."""
        return self.parts[column % len(self.parts)]

    def columns_with(self, name: str) -> range:
        """The columns that have some of the tensor `name`, in the order of their experts."""
        count = len(self.parts)
        part = 0 if count == 1 else next(n for n, specs in enumerate(self.parts) if any(s.name == name for s in specs))
        return range(part, self.columns, count)

    def crowded(self, count: int) -> tuple[int, ...]:
        """So many columns in as few layers as they can lie in: what a shard of that size takes at most of a layer."""
        return tuple(sorted(sorted(range(self.columns), key=lambda one: one % len(self.parts))[:count]))

    def cut_into(self, column_parts: int) -> Layout:
        """The same model with each expert's column in so many parts; ConfigError where it cannot be cut so."""
        parts = _parts(list(self.column), column_parts, self.residency)
        return replace(self, parts=parts, columns=self.experts * column_parts)

    @property
    def family(self) -> Family:
        """What the model is made of."""
        return family_named(self.config_json["model_type"])

    @property
    def expert_layers(self) -> int:
        """How many layers have experts."""
        return sum(spec.name.endswith(self.family.experts[0].suffix) for spec in self.column)

    @property
    def groups(self) -> tuple[int, int]:
        """How many groups of neighbouring columns there are, and how many of them a token may choose from."""
        return self.family.groups_of(self.config_json)

    @property
    def selection_biases(self) -> frozenset[str]:
        """Names of the tensors that no gradient moves: `moe.selection` does."""
        return frozenset(spec.name for spec in (*self.trunk, *self.column) if self.family.is_selection_bias(spec.name))

    @property
    def min_columns(self) -> int:
        """Fewest columns of a shard: where the other experts are absent, a token needs its top-k among those held."""
        return self.top_k if self.residency == ABSENT else 1

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """Every block of the model: the trunk, then the columns in order."""
        return self.shard_blocks(range(self.columns))

    def shard_blocks(self, columns: Iterable[int]) -> tuple[BlockId, ...]:
        """Blocks that a shard of these columns trains: the trunk, then its columns, ascending."""
        return (TRUNK, *(column_block(column) for column in sorted(columns)))

    def needed_blocks(self, columns: Iterable[int]) -> tuple[BlockId, ...]:
        """Blocks that must be at hand to build that shard: all of them where the others are frozen."""
        return self.blocks if self.residency == FROZEN else self.shard_blocks(columns)

    def block_specs(self, block: BlockId) -> tuple[ParamSpec, ...]:
        """What `block` holds; LocalError for a column that the model does not have."""
        column = column_of(block)
        if column is None:
            return self.trunk
        if column >= self.columns:
            raise LocalError(f"block {block}: the model has {self.columns} expert columns")
        return self.specs_of(column)

    def sent_specs(self, block: BlockId, trunk: TrunkPart) -> tuple[ParamSpec, ...]:
        """What a submission has of `block` where that of the trunk is trained: factors in the place of matrices, and
        nothing of what stays as it is."""
        specs = self.block_specs(block)
        if block != TRUNK or trunk.mode == WHOLE_TRUNK:
            return specs
        from moe.trunk import trunk_sort

        found = trunk_sort(self.config_json, trunk)
        assert found is not None
        shapes = ((spec.name, found.sent_shape(spec.name, spec.shape)) for spec in specs)
        return tuple(ParamSpec(name=name, shape=shape) for name, shape in shapes if shape is not None)

    def block_bytes(self, block: BlockId) -> int:
        """Bytes of the block's values in fp32."""
        return sum(spec.payload_bytes for spec in self.block_specs(block))

    @property
    def max_block_bytes(self) -> int:
        """Bytes of the largest block."""
        return max(self.block_bytes(block) for block in (TRUNK, column_block(0)))

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole model in fp32."""
        return self.trainable_bytes(self.columns)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.total_bytes // FP32_BYTES

    def trainable_bytes(self, columns_held: int) -> int:
        """Bytes of what a shard of `columns_held` columns trains, in fp32."""
        return self.block_bytes(TRUNK) + columns_held * self.block_bytes(column_block(0))

    def check_columns(self, columns: Iterable[int]) -> tuple[int, ...]:
        """The columns, ascending, of a shard that can be trained; ConfigError with the reason otherwise."""
        held = tuple(sorted(columns))
        if not held or len(set(held)) != len(held) or held[0] < 0 or held[-1] >= self.columns:
            raise ConfigError(f"a shard needs distinct columns of 0 to {self.columns - 1}, got {list(held)}")
        if len(held) < self.min_columns:
            raise ConfigError(
                f"residency absent: a shard must hold at least top-k = {self.top_k} columns, "
                f"since each token is sent to that many experts; got {len(held)}"
            )
        return held


def layout(config: PreTrainedConfig, residency: str, column_parts: int = 1) -> Layout:
    """Cut the model that `config` describes, each expert's column into `column_parts`; ConfigError with the reason
    where it cannot be cut so."""
    from moe.config import config_to_json
    from moe.skeleton import meta_model, own_tensors

    if residency not in RESIDENCIES:
        raise ConfigError(f"residency: expected one of {', '.join(RESIDENCIES)}, got {residency!r}")
    values = config_to_json(config)
    family, model = family_named(config.model_type), meta_model(config)
    if residency == ABSENT and (why := family.why_not_absent(values)):
        raise ConfigError(f"residency absent is not for this model: {why}")
    tensors, experts = own_tensors(model), values["num_experts"]
    trunk, column = [], []
    for name, tensor in tensors.items():
        part, shape = family.per_expert(name), tuple(tensor.shape)
        if part is None or not (family.is_expert(name) or residency == ABSENT):
            trunk.append(ParamSpec(name=name, shape=shape))
        else:
            column.append(ParamSpec(name=name, shape=_shape_of_part(name, part, shape, experts)))
    if not column:
        raise ConfigError("this model cannot be trained in a run: no layer has experts")
    return Layout(
        config_json=values,
        residency=residency,
        trunk=tuple(trunk),
        parts=(tuple(column),),
        columns=experts,
        top_k=values["num_experts_per_tok"],
        tied=_tied(model),
        integers=tuple(name for name, tensor in tensors.items() if not tensor.is_floating_point()),
    ).cut_into(column_parts)


def _parts(column: list[ParamSpec], count: int, residency: str) -> tuple[tuple[ParamSpec, ...], ...]:
    """A column by groups of neighbouring layers, as many in each."""
    if count == 1:
        return (tuple(column),)
    if residency == ABSENT:
        raise ConfigError("column parts are for residency frozen: a shard without the others is a model of all layers")
    from moe.selection import layer_of

    layers = sorted({layer_of(spec.name) for spec in column})
    if count < 1 or len(layers) % count:
        raise ConfigError(
            f"column parts: {len(layers)} layers have experts, and as many must lie in each part, got {count} parts"
        )
    group = {layer: number * count // len(layers) for number, layer in enumerate(layers)}
    found = tuple(tuple(spec for spec in column if group[layer_of(spec.name)] == part) for part in range(count))
    if len({sum(spec.payload_bytes for spec in part) for part in found}) != 1:
        raise ConfigError(f"column parts: in {count} parts some would be larger than others, since layers differ")
    return found


def _shape_of_part(name: str, part: PerExpert, shape: tuple[int, ...], experts: int) -> tuple[int, ...]:
    """Shape of one expert's part of a tensor."""
    before, counted, after = shape[: part.dim], shape[part.dim], shape[part.dim + 1 :]
    if counted % experts or (counted != experts and not part.flat):
        raise LocalError(f"{name}: expected {experts} experts in dimension {part.dim}, got shape {shape}")
    return (*before, *((counted // experts,) if part.flat else ()), *after)


def _tied(model: PreTrainedModel) -> tuple[tuple[str, str], ...]:
    kept = {id(tensor): name for name, tensor in model.named_parameters()}
    return tuple(
        (name, kept[id(tensor)])
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if kept[id(tensor)] != name
    )


def submission_specs(model_layout: Layout, columns: Iterable[int], trunk: TrunkPart = ALL_OF_TRUNK) -> list[TensorSpec]:
    """What a submission for a shard of these columns must hold: names `BLOCK/PARAMETER`, sorted by name."""
    specs = [
        TensorSpec(name=submission_name(block, spec.name), shape=spec.shape)
        for block in model_layout.shard_blocks(columns)
        for spec in model_layout.sent_specs(block, trunk)
    ]
    return sorted(specs, key=lambda spec: spec.name)


def block_tensor_specs(model_layout: Layout, block: BlockId, trunk: TrunkPart = ALL_OF_TRUNK) -> list[TensorSpec]:
    """What the file of `block` must hold, sorted by name; with `trunk`, what a submission has of it."""
    specs = [TensorSpec(name=spec.name, shape=spec.shape) for spec in model_layout.sent_specs(block, trunk)]
    return sorted(specs, key=lambda spec: spec.name)
