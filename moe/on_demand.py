"""A whole model of which the trunk is in memory: experts stay where they lie, and are read when a token needs them.

Decides what is kept (the trunk, the experts' biases, which are small, and as many of their matrices as have room) and
what is read again and again (the other matrices, each while the one before it is multiplied). Holds always: what
comes out is what the whole model in memory gives, but for the rounding of sums; nothing is trained. Files are read, not
mapped (`moe.stored`), so what the system keeps of them beside is its own cache, which it gives back.

Where its experts lie: in a checkpoint's files, or in the blocks of a version, mapped or coded.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.blocks import joined
from moe.config import config_from_json
from moe.experts import EXPERTS_IMPLEMENTATION, attach_experts
from moe.frozen import FrozenExperts, frozen_layers
from moe.kept import FrozenSpec, LayerBlocks
from moe.layout import Layout, ParamSpec, layout
from moe.skeleton import materialise, meta_model, own_tensors
from moe.slots import experts_of
from moe.streams import Computed, PartOfSmall, PiecedTensor, StreamedTensor, read_into, read_whole
from moe.undispatched import attach_undispatched
from protocol.codecs_grouped import GroupedCodec
from protocol.encoded_block import lying_in
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.residency import FROZEN

Lying = Mapping[str, Any]
"""One block: tensors by name, or `StreamedTensor`s."""
Told = Callable[[str], object]


class OnDemandStore:
    """Experts where they lie: `moe.kept.FrozenStore`. One at a time is asked for; what is expected is read ahead, by a
    thread of its own, and what was asked for last is kept as long as there is room."""

    def __init__(self, kept_bytes: int) -> None:
        """`kept_bytes`: of matrices in memory, those among them that are in use."""
        self._layers: LayerBlocks = ()
        self._room_bytes = kept_bytes
        self._kept: OrderedDict[_Matrix, Tensor] = OrderedDict()
        self._coming: dict[_Matrix, Future[Tensor]] = {}
        self._later: deque[_Matrix] = deque()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="experts")

    def take(self, blocks: LayerBlocks) -> None:
        """In place of what it had."""
        self.let_go()
        self._layers = blocks

    def expect(self, layer: int, spec: FrozenSpec, pieces: Sequence[tuple[int, int]], workspace: Tensor) -> None:
        """These are asked for next, in this order."""
        self._forget()
        wanted = (_Matrix(spec.name, first, layer) for first, _ in pieces)
        self._later.extend(one for one in wanted if one not in self._kept)
        self._read_next(spec, workspace.dtype)

    def values(self, layer: int, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """As it is kept, or read; `workspace` says in which dtype."""
        wanted = _Matrix(spec.name, first, layer)
        found = self._kept.get(wanted)
        if last != first + 1:
            raise LocalError(f"{spec.name}: experts are read one at a time, not {last - first}")
        if found is not None:
            self._kept.move_to_end(wanted)
            return found
        coming = self._coming.pop(wanted, None)
        found = self._read(wanted, self._memory(spec, workspace.dtype)) if coming is None else coming.result()
        self._kept[wanted] = found
        self._read_next(spec, workspace.dtype)
        return found

    def let_go(self) -> None:
        """Their files may go."""
        self._forget()
        self._kept.clear()
        self._layers = ()

    def _read_next(self, spec: FrozenSpec, dtype: torch.dtype) -> None:
        if self._later and not self._coming:
            matrix = self._later.popleft()
            self._coming[matrix] = self._reader.submit(self._read, matrix, self._memory(spec, dtype))

    def _memory(self, spec: FrozenSpec, dtype: torch.dtype) -> Tensor:
        """[1, N, H] for one more: what was asked for longest ago makes room."""
        size = spec.elements * dtype.itemsize
        used = sum(one.nbytes for one in self._kept.values())
        while self._kept and used + size > self._room_bytes:
            used -= self._kept.popitem(last=False)[1].nbytes
        return torch.empty((1, *spec.shape), dtype=dtype)

    def _read(self, matrix: _Matrix, memory: Tensor) -> Tensor:
        with torch.inference_mode():  # what whoever asked may be in: it is a thread's own
            _put(self._layers[matrix.layer][matrix.expert], matrix.name, memory[0])
        return memory

    def _forget(self) -> None:
        """Nothing is on its way any more."""
        self._later.clear()
        wait(self._coming.values())
        self._coming.clear()


class _Matrix(NamedTuple):
    name: str
    expert: int
    layer: int


def on_demand_model(
    cut: Layout,
    blocks: Mapping[BlockId, Lying],
    dtype: torch.dtype,
    *,
    kept_bytes: int = 0,
    told: Told = lambda _: None,
) -> PreTrainedModel:
    """The model of these blocks, which have to stay readable, computing in `dtype` on the CPU, in evaluation mode.

    So many bytes of experts are kept in memory, and never less than what one product needs.
    """
    if cut.residency != FROZEN:
        raise LocalError("a whole model is cut as in residency frozen, where routers are trunk")
    model = _meta_model(cut, dtype)
    kept_in = _dtypes(model, dtype)
    trunk = blocks[TRUNK]
    tensors: dict[str, Tensor] = {}
    for spec in cut.trunk:
        told(f"reading the trunk: {len(tensors)} of {len(cut.trunk)} tensors")
        tensors[spec.name] = _whole(trunk, spec, kept_in[spec.name])
    _attach(model, cut, OnDemandStore(kept_bytes), blocks, kept_in, dtype)
    materialise(model, tensors, cut.tied, torch.device("cpu"))
    model.requires_grad_(False)
    model.train(False)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.register_forward_pre_hook(_in_one_piece)
    return model


def _in_one_piece(_head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of a row that is cut out of a prompt's, torch takes a batched product, and copies the whole head for it."""
    return tuple(one.new_empty(one.shape).copy_(one) if isinstance(one, Tensor) else one for one in arguments)


def as_frozen(cut: Layout, blocks: Mapping[BlockId, Lying]) -> tuple[Layout, Mapping[BlockId, Lying]]:
    """The same model and blocks, routers being trunk, however it was cut."""
    if cut.residency == FROZEN:
        return cut, blocks
    whole = layout(config_from_json(cut.config_json), FROZEN)
    columns = [blocks[column_block(column)] for column in range(cut.columns)]
    routers = {
        spec.name: joined([block[spec.name] for block in columns], spec.name, cut)
        for spec in cut.column
        if cut.family.is_router(spec.name)
    }
    return whole, {**blocks, TRUNK: {**blocks[TRUNK], **routers}}


def _attach(
    model: PreTrainedModel,
    cut: Layout,
    store: OnDemandStore,
    blocks: Mapping[BlockId, Lying],
    kept_in: Mapping[str, torch.dtype],
    dtype: torch.dtype,
) -> None:
    """Nothing is held: of each matrix there is one of no experts, and the way to all of them."""
    # one at a time: of several that lie together, most are no token's
    workspaces = [torch.empty(0, dtype=dtype)] * len(frozen_layers(cut, ()))
    apart = FrozenExperts(cut, (), store, workspaces, most=1)
    apart.take(blocks)
    shapes = {spec.name: spec for spec in cut.column}
    for path, names in experts_of(cut).items():
        weights = {}
        for name in names:
            spec = shapes[f"{path}.{name}"]
            if apart.has(spec.name):
                weights[name] = torch.empty((0, *spec.shape), dtype=dtype)
            else:
                columns = (blocks[column_block(column)] for column in cut.columns_with(spec.name))
                weights[name] = torch.stack([_whole(block, spec, kept_in[spec.name]) for block in columns])
        module, slots = model.get_submodule(path), list(range(cut.experts))
        if cut.family.undispatched:
            attach_undispatched(module, cut.family.undispatched, slots, 0, weights, frozen=apart.matrices(path))
        else:
            attach_experts(module, slots, 0, weights, frozen=apart.matrices(path))


def _meta_model(cut: Layout, dtype: torch.dtype) -> PreTrainedModel:
    """As `from_pretrained` builds it in this dtype: some classes have tensors that stay fp32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return meta_model(config_from_json(cut.config_json), EXPERTS_IMPLEMENTATION)
    finally:
        torch.set_default_dtype(before)


def _dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What each tensor is kept in: as `from_pretrained` decides it."""
    plan = {re.compile(key.replace("*", ".*")): kept for key, kept in model._get_dtype_plan(dtype).items()}
    return {
        name: next((kept for key, kept in plan.items() if key.search(name)), tensor.dtype)
        for name, tensor in own_tensors(model).items()
    }


def _whole(block: Lying, spec: ParamSpec, dtype: torch.dtype) -> Tensor:
    found: Tensor | StreamedTensor = block[spec.name]
    wanted = dtype if dtype.is_floating_point else torch.float32  # whole numbers are fp32 in blocks, exactly
    if isinstance(found, Tensor):
        return found.to(wanted, copy=True)
    return read_whole(found, wanted)


def _put(block: Lying, name: str, values: Tensor) -> None:
    """A matrix into memory that is there."""
    lying = lying_in(block, name)
    if lying is not None and isinstance(lying.codec, GroupedCodec):
        lying.codec.decode_into(lying.parts, values)
        return
    found = block[name]
    if isinstance(found, PiecedTensor | PartOfSmall | Computed):
        read_into(found, values)
    else:
        values.copy_(found)
