"""Frozen experts that are coded, or lie elsewhere: the same numbers wherever they lie, and no more memory than told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OlmoeConfig

from moe.blocks import Blocks
from moe.brought import BroughtStore, FileSource, HostSource, PlainLane
from moe.families import Family, family_named
from moe.frozen import frozen_experts, frozen_layers
from moe.frozen_bytes import frozen_bytes
from moe.kept import FrozenSpec, FrozenStore, KeptForm, LyingStore, ResidentStore
from moe.layout import Layout, block_tensor_specs, layout
from moe.shard import ShardModel, build_shard
from moe.stand_ins import DECODED, DEVICE, HOST, MAPPED, PLACES, StandIns, is_coded
from protocol.codecs import CODECS, codec_named
from protocol.encoded_block import EncodedBlock
from protocol.errors import LocalError
from protocol.ids import BlockId, column_block
from protocol.recipe import FROZEN_DTYPES
from protocol.specs import TensorSpec
from protocol.tensors import encode_tensors, encoded_tensors
from tests.live_tensors import LiveTensors
from tests.moe.conftest import COMMON, fresh

HELD = (0, 1, 3)
PLAIN = {"olmoe": "olmoe", "mixtral": "mixtral", "qwen3_moe": "qwen3_moe"}


def computed(shard: ShardModel, tokens: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients."""
    for parameter in shard.parameters():
        parameter.grad = None
    parts = shard.loss(tokens)
    parts.total.backward()
    named = shard.module.named_parameters()
    return float(parts.total.detach()), {name: one.grad.clone() for name, one in named if one.grad is not None}


def same(left: tuple[float, dict[str, Tensor]], right: tuple[float, dict[str, Tensor]]) -> bool:
    return (
        left[0] == right[0]
        and left[1].keys() == right[1].keys()
        and all(torch.equal(gradient, right[1][name]) for name, gradient in left[1].items())
    )


def came_in(
    blocks: Blocks, cut: Layout, codec: str, held: tuple[int, ...] = HELD
) -> dict[BlockId, Mapping[str, Tensor]]:
    """What is not held as it is fetched: in `codec`."""
    found: dict[BlockId, Mapping[str, Tensor]] = dict(blocks)
    for column in set(range(cut.columns)) - set(held):
        block = column_block(column)
        payload = memoryview(bytearray(encode_tensors(blocks[block], codec_named(codec))))
        specs = block_tensor_specs(cut, block)
        found[block] = EncodedBlock(encoded_tensors(payload, specs, codec_named(codec)))
    return found


def through(tensor: Tensor, codec: str) -> Tensor:
    one = CODECS[codec]
    return one.decode(one.encode(tensor).parts, TensorSpec("t", tuple(tensor.shape)))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_coded_experts_are_what_their_codec_makes_of_them(
    family: Family, frozen: Layout, tokens: Any, dtype: str
) -> None:
    """Of every family there is: as if somebody had rounded the blocks before, and kept them whole."""
    blocks = fresh(frozen)
    rounded: Blocks = {
        block: {
            name: through(tensor, dtype)
            if block not in ("trunk", *map(column_block, HELD)) and is_coded(family, name)
            else tensor
            for name, tensor in tensors.items()
        }
        for block, tensors in blocks.items()
    }
    expected = computed(build_shard(frozen, HELD, rounded), tokens)
    shard = build_shard(frozen, HELD, blocks, stand_ins=StandIns(dtype=dtype))
    assert same(computed(shard, tokens), expected)
    assert not same(computed(build_shard(frozen, HELD, blocks), tokens), expected)
    kept = {
        name for name, tensor in shard.module.named_buffers() if name.endswith("_all") and tensor.shape[0] > len(HELD)
    }
    assert all(not is_coded(family, name.removesuffix("_all")) for name in kept), "only biases are there for every slot"


@pytest.mark.parametrize("family", PLAIN, indirect=True)
@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dtype", FROZEN_DTYPES)
@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
def test_where_they_lie_changes_no_bit(
    frozen: Layout,
    tokens: Any,
    dtype: str,
    codec: str,
    compute_dtype: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However they came, whatever they are multiplied in, with activations computed again, and one expert at a time."""
    blocks = came_in(fresh(frozen), frozen, codec)
    found = []
    for place in PLACES:
        stand_ins = StandIns(dtype=dtype, place=place)
        shard = build_shard(frozen, HELD, blocks, compute_dtype=compute_dtype, stand_ins=stand_ins)
        found.append(computed(shard, tokens))
        shard.recompute(on=True)
        found.append(computed(shard, tokens))
    monkeypatch.setattr("moe.frozen.AT_ONCE_BYTES", 1)
    stand_ins = StandIns(dtype=dtype, place=MAPPED)
    found.append(computed(build_shard(frozen, HELD, blocks, compute_dtype=compute_dtype, stand_ins=stand_ins), tokens))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("family", PLAIN, indirect=True)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("masters", ["fp32", "bf16"])
def test_a_shard_that_is_loaded_anew_is_as_one_that_is_built(
    frozen: Layout, tokens: Any, place: str, masters: str
) -> None:
    stand_ins = StandIns(dtype="int4", place=place)
    first, second = came_in(fresh(frozen), frozen, "int4"), fresh(frozen)
    other = {block: {name: 2 * tensor for name, tensor in tensors.items()} for block, tensors in second.items()}
    shard = build_shard(frozen, HELD, first, masters=masters, stand_ins=stand_ins)
    once = computed(shard, tokens)
    shard.let_go()
    shard.load(other)
    assert same(
        computed(shard, tokens),
        computed(build_shard(frozen, HELD, other, masters=masters, stand_ins=stand_ins), tokens),
    )
    shard.load(first)
    assert same(computed(shard, tokens), once)
    assert shard.serves(HELD, masters, stand_ins)
    assert not shard.serves(HELD, masters, StandIns(dtype="int8", place=place))


def test_bytes_that_came_in_the_same_codec_stay_what_they_are() -> None:
    """Of int8 a second encoding may have other steps: then a replay from the same bytes would compute otherwise."""
    codec = CODECS["int8"]
    tensor = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    once = through(tensor, "int8")
    assert not torch.equal(through(once, "int8"), once), "what this test is about"
    payload = memoryview(bytearray(encode_tensors({"w.mlp.experts.gate_up_proj": tensor}, codec)))
    specs = [TensorSpec("w.mlp.experts.gate_up_proj", (64, 256))]
    block = EncodedBlock(encoded_tensors(payload, specs, codec))
    decoded = StandIns(dtype="int8", place=DECODED)
    assert torch.equal(decoded.values(block, "w.mlp.experts.gate_up_proj", family_named("olmoe")), once)
    form = KeptForm(codec=codec, dtype=torch.float32)  # type: ignore[arg-type]
    spec = FrozenSpec(name="w.mlp.experts.gate_up_proj", shape=(64, 256), count=1)
    for store in (ResidentStore([[spec]], form, torch.device("cpu")), LyingStore(form)):
        store.take([[block]])
        assert torch.equal(store.values(0, spec, 0, 1, torch.empty(spec.elements))[0], once)


@pytest.mark.parametrize("family", ["olmoe"], indirect=True)
@pytest.mark.parametrize("kind", ["host", "file"])
@pytest.mark.parametrize("dtype", FROZEN_DTYPES)
def test_layers_that_are_brought_are_those_that_stay(
    frozen: Layout, tokens: Any, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, on a device that copies in order: the store, the slots and the schedule are its own."""
    blocks = came_in(fresh(frozen), frozen, "int4")
    expected = computed(build_shard(frozen, HELD, blocks, stand_ins=StandIns(dtype=dtype, place=DECODED)), tokens)
    lanes: list[Watched] = []

    def brought_store(layers: Any, form: KeptForm, place: str, device: torch.device) -> FrozenStore:
        source = HostSource(layers, form) if kind == "host" else FileSource(layers, form, 1)
        lanes.append(Watched())
        return BroughtStore(source, layers, form, device, lanes[0], 1)

    monkeypatch.setattr("moe.frozen._store", brought_store)
    shard = build_shard(frozen, HELD, blocks, stand_ins=StandIns(dtype=dtype, place=HOST if kind == "host" else MAPPED))
    assert same(computed(shard, tokens), expected)
    assert lanes[0].sent == 2 * len(frozen_layers(frozen, HELD)) - 1, "the last layer stays for the backward pass"
    shard.load(blocks)
    assert same(computed(shard, tokens), expected)
    shard.let_go()


class Watched(PlainLane):
    def __init__(self) -> None:
        self.sent = 0
        self.came: set[int] = set()

    def send(self, slot: int, source: Tensor, target: Tensor) -> None:
        self.sent += 1
        target.random_(0, 255)
        super().send(slot, source, target)
        self.came.discard(slot)

    def come(self, slot: int) -> None:
        self.came.add(slot)


@pytest.fixture(scope="module")
def wide() -> Layout:
    """Of 12 million parameters in frozen experts, two of which are decoded at a time."""
    values = {**COMMON, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_experts": 16}
    return layout(OlmoeConfig(**values, num_experts_per_tok=2, norm_topk_prob=True), "frozen")


@pytest.mark.parametrize(
    ("dtype", "place"),
    [("int4", DECODED), ("int8", DEVICE), ("int4", DEVICE), ("int4", MAPPED), ("compute", MAPPED)],
)
def test_no_layer_is_decoded_for_longer_than_it_is_computed_with(
    wide: Layout, tokens: Any, dtype: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of all tensors that there are at any time, but for what blocks lie in."""
    monkeypatch.setattr("moe.frozen.AT_ONCE_BYTES", 2 * 4 * 2 * 128 * 512)
    held = (0,)
    blocks = came_in(fresh(wide), wide, "fp32" if dtype == "compute" else dtype, held)

    def most_bytes(stand_ins: StandIns) -> int:
        with LiveTensors() as live:
            shard = build_shard(wide, held, blocks, stand_ins=stand_ins)
            shard.recompute(on=True)
            shard.loss(tokens).total.backward()
        return int(live.peak_bytes)

    whole = 4 * 15 * 3 * 128 * 512 * 4
    beside = most_bytes(StandIns()) - whole
    assert frozen_bytes(wide, 1, StandIns()).device == whole
    taken = most_bytes(StandIns(dtype=dtype, place=place)) - beside
    told = frozen_bytes(wide, 1, StandIns(dtype=dtype, place=place))
    assert told.host == 0
    assert taken == pytest.approx(told.device, rel=0.02, abs=1 << 20)
    if not StandIns(dtype=dtype, place=place).are_whole:
        limit = {"compute": 0.0, "int8": 0.26, "int4": 0.14}[dtype] if place == DEVICE else 0.0
        assert taken < limit * whole + (3 << 20)


@pytest.mark.parametrize("family", ["olmoe"], indirect=True)
def test_a_dtype_that_is_none_is_refused_and_a_whole_model_has_nothing_frozen(frozen: Layout) -> None:
    with pytest.raises(LocalError, match="'int2'"):
        build_shard(frozen, HELD, fresh(frozen), stand_ins=StandIns(dtype="int2"))
    everything = tuple(range(frozen.columns))
    assert frozen_experts(frozen, everything, StandIns(dtype="int4"), torch.float32, torch.device("cpu")) is None
