"""A shard that can be trained: the trunk and some expert columns, with whatever stands in for the others.

Decides how a lease's model is built, what of it is trained, and what its loss is. Holds always: the optimizer can see
only what is held, and of that nothing that no gradient moves (selection biases, tables) or that the run's trunk mode
leaves as it is; the router's balance loss is part of the loss, and a function of the whole batch; `held_blocks` returns
exactly what was trained.

Frozen: a model of full size, the other experts without gradients. Absent: a smaller model of the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.attached import attach_all, expert_tensors
from moe.balance import RoutedCounts, balance_loss, routed_counts
from moe.blocks import Blocks, check_blocks, part_of
from moe.config import config_from_json
from moe.experts import EXPERTS_IMPLEMENTATION
from moe.factors import FACTOR
from moe.fp32_routing import route_in_fp32
from moe.frozen import FrozenExperts, frozen_experts
from moe.head import Head
from moe.held_trunk import HeldTrunk
from moe.layerwise import Layerwise
from moe.layout import Layout
from moe.masters import masters_of
from moe.optimised import FACTORS, ROUNDED, OptimiserGroups
from moe.padded import GROUPED, PADDED
from moe.recomputed import Recomputation
from moe.routing import LogitsTap, expert_modules
from moe.selection import Choices, layer_of, move_biases
from moe.skeleton import PLAIN_EXPERTS, materialise, meta_model, own_tensors
from moe.slots import behind_slots, experts_of, held_slots, slot_order
from moe.stand_ins import AS_THEY_CAME, StandIns
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.lease import ALL_OF_TRUNK, TrunkPart
from protocol.recipe import BF16_MASTERS
from protocol.residency import FROZEN
from protocol.submission import Blocks as AnyBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """`total` is what is differentiated: nll + router_aux_loss_coef * balance."""

    total: Tensor
    nll: Tensor
    """Mean cross-entropy, nats a token."""
    balance: Tensor
    """Router balance loss before its coefficient; top-k when the load is even. 0 where the model has none."""
    chosen: Tensor | None = None
    """Where selection biases are: how often each expert of each such layer was chosen, [L, E] int64."""


class ShardModel:
    """One shard's model. Made by `build_shard`; lives for one lease or, through `load`, others of its columns."""

    def __init__(
        self,
        module: PreTrainedModel,
        layout: Layout,
        columns: tuple[int, ...],
        compute_dtype: torch.dtype | None,
        trunk: HeldTrunk,
        stand_ins: StandIns = AS_THEY_CAME,
        apart: FrozenExperts | None = None,
    ) -> None:
        self.module = module
        self.stand_ins, self._apart = stand_ins, apart
        self._trunk = trunk
        self.masters = trunk.masters
        self.layout = layout
        self.columns = columns
        self.compute_dtype = compute_dtype
        family, values = layout.family, layout.config_json
        self.balance_coefficient = family.balance_coefficient(values)
        self._balanced = family.balance != "none"
        self._top_k = layout.top_k
        self._head = Head(module)
        self._recomputation = Recomputation(module)
        self._tensors = own_tensors(module)
        moved = layout.selection_biases - trunk.still
        biases = {name: tensor for name, tensor in self._tensors.items() if name in moved}
        self.selection_biases: tuple[Tensor, ...] = tuple(tensor.requires_grad_(False) for tensor in biases.values())
        """What `move_selection_biases` moves, by layer; no gradient reaches it."""
        self._choices = _choices_of(module, biases) if biases else None

    def serves(
        self,
        columns: tuple[int, ...],
        masters: str,
        stand_ins: StandIns = AS_THEY_CAME,
        trunk: TrunkPart = ALL_OF_TRUNK,
    ) -> bool:
        """Whether `load` makes of it a shard of these columns, of a recipe with these `masters` and of that trunk."""
        alike = self.columns == columns and self.stand_ins == stand_ins and self._trunk.part == trunk
        return alike and bool(self.masters.rounded) == (masters == BF16_MASTERS)

    def let_go(self) -> None:
        """Keep no block that lies in others' memory: `load` comes before it is used again."""
        if self._apart is not None:
            self._apart.let_go()

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return next(self.module.parameters()).device

    def train(self) -> ShardModel:
        """Switch to training behaviour; returns itself."""
        self.module.train()
        return self

    def eval(self) -> ShardModel:
        """Switch to evaluation behaviour; returns itself."""
        self.module.train(False)
        return self

    def recompute(self, *, on: bool) -> None:
        """Whether training keeps a layer's input only and computes the rest again: slower, and the same."""
        self._recomputation.switch(on=on)

    def layerwise(self, *, on_host: bool = False) -> Layerwise:
        """What takes gradients layer by layer, where the model can; `on_host`: layers' inputs are kept there."""
        return Layerwise(
            self.module,
            self._head,
            self._recomputation,
            autocast=self._autocast,
            dtype=self.compute_dtype or torch.float32,
            chosen=self._chosen,
            coefficient=self.balance_coefficient if self._balanced else None,
            top_k=self._top_k,
            on_host=on_host,
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that gradients train, each once."""
        return (parameter for parameter in self.module.parameters() if parameter.requires_grad)

    def parameter_groups(self, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups over what is held: matrices, the head, routers (their own rate), and what does not decay.

        Matrices, head and routers decay. Norm scales, biases, embeddings (with a tied head) and what else is a vector
        do not: decaying a scale or a rare token's row pulls it to zero for reasons that are not in the data. Nor do
        factors: at zero is what the lease began with, and decay would take back what it has learnt. A matrix
        group says how its parameters lie, as `worker.train.optimizer.Muon` reads it; `rounded`: to bf16 after a step;
        `layers`: that its parameters lie in, -1 in none.
        """
        kinds: dict[str, list[nn.Parameter]] = {}
        layers: dict[str, list[int]] = {}
        sorter = OptimiserGroups(self.module, self.layout.family)
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                kind = FACTORS if name.endswith(FACTOR) else sorter.kind(name, parameter)
                kinds.setdefault(kind, []).append(parameter)
                layers.setdefault(kind, []).append(layer_of(name))
        decayed = {"lr": lr, "weight_decay": weight_decay}
        routers = {"lr": lr * router_lr_scale}
        lying = {"transposed": sorter.transposed, "interleaved": sorter.interleaved}
        groups: list[dict[str, Any]] = [
            {"name": "matrices", **decayed, "parts": 1},
            {"name": "turned", **decayed, "parts": 1, "transposed": True},
            {"name": "fused", **decayed, "parts": 2, **lying},
            {"name": FACTORS, "lr": lr, "weight_decay": 0.0},
            {"name": "head", **decayed},
            {"name": "routers", **routers, "weight_decay": weight_decay},
            {"name": "router_vectors", **routers, "weight_decay": 0.0},
            {"name": "embeddings", "lr": lr, "weight_decay": 0.0},
            {"name": "undecayed", "lr": lr, "weight_decay": 0.0},
        ]
        rounded = bool(self.masters.rounded)
        return [
            {"params": kinds[name], "layers": layers[name], **group, "rounded": rounded and name in ROUNDED}
            for group in groups
            if (name := str(group["name"])) in kinds
        ]

    def loss(self, tokens_BT1: Tensor, counts: RoutedCounts | None = None) -> LossParts:
        """Loss on sequences of T+1 tokens: each of the last T is predicted from those before it.

        Where they are a part of a batch, `counts` is what `count_routes` gives for the whole of it.
        """
        tokens_BT1 = tokens_BT1.to(self.device, torch.long)
        hidden_BTH, logits_by_layer = self._run(self._head.hidden, tokens_BT1)
        with self._autocast():
            dtype = self.compute_dtype or torch.float32
            nll = self._head.mean_loss(hidden_BTH, tokens_BT1[:, 1:].flatten(), dtype)
        if not self._balanced:
            return LossParts(total=nll, nll=nll, balance=torch.zeros_like(nll.detach()), chosen=self._chosen())
        balance = balance_loss(logits_by_layer, counts or routed_counts(logits_by_layer, self._top_k))
        total = nll + self.balance_coefficient * balance
        return LossParts(total=total, nll=nll, balance=balance, chosen=self._chosen())

    @torch.no_grad()
    def count_routes(self, tokens_BT1: Tensor) -> RoutedCounts:
        """Where the routers send the tokens of these sequences: the choices that `loss` makes, without its head."""
        _, logits_by_layer = self._run(self._below, tokens_BT1.to(self.device, torch.long))
        return routed_counts(logits_by_layer, self._top_k)

    def move_selection_biases(self, chosen_LE: Tensor, rate: float) -> None:
        """After a step: `chosen_LE` is the sum of `LossParts.chosen` over the parts of its batch."""
        move_biases(self.selection_biases, chosen_LE, rate)

    def _chosen(self) -> Tensor | None:
        return None if self._choices is None else self._choices.take()

    def _below(self, tokens_BT: Tensor) -> Any:
        return self.module.base_model(input_ids=tokens_BT, use_cache=False)

    def _run(self, run: Callable[[Tensor], Any], tokens_BT1: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """What `run` makes of all tokens but the last, and, to be balanced, each layer's router logits."""
        with self._autocast(), LogitsTap(self.module) if self._balanced else nullcontext() as tap:
            output = run(tokens_BT1[:, :-1])
        logits_by_layer = tap.logits if tap is not None else ()
        if self._balanced and not logits_by_layer:
            raise LocalError("the model gave no router logits, so there is no balance loss")
        return output, logits_by_layer

    def held(self) -> Iterator[tuple[BlockId, dict[str, Tensor]]]:
        """What is trained, by block: the present weights, where they are and as they are kept; factors for matrices."""
        if sent := self._trunk.sent(self._tensors):
            yield TRUNK, sent
        for column in self.columns:
            specs = self.layout.specs_of(column)
            slot = held_slots(self.layout, self.columns, specs[0].name).index(column)
            yield column_block(column), {spec.name: self._row(spec.name, slot) for spec in specs}

    def held_blocks(self) -> Blocks:
        """What is held, as blocks in fp32 on the CPU with memory of their own: exactly the present weights."""
        return {block: {name: _exact(tensor) for name, tensor in tensors.items()} for block, tensors in self.held()}

    def begun(self, name: str, value: Tensor) -> Tensor:
        """What training began with of what `held` gives under `name`, where a version has `value` of that tensor."""
        return self._trunk.begun(name, value)

    @torch.no_grad()
    def load(self, blocks: AnyBlocks) -> None:
        """Take the weights of `blocks` (those that `build_shard` would want), in place."""
        _check_given(self.layout, self.columns, blocks)
        self._trunk.load(self._tensors, blocks[TRUNK])
        for spec in self.layout.column:
            order = slot_order(self.layout, self.columns, spec.name)
            held = held_slots(self.layout, self.columns, spec.name)
            behind = behind_slots(self.module, spec.name)
            for slot, column in enumerate(order if behind is None else order[: len(behind)]):
                block = blocks[column_block(column)]
                if slot < len(held):
                    row = self.masters.begun(spec.name, block[spec.name])
                    self._row(spec.name, slot).copy_(row)
                else:
                    row = self.stand_ins.values(block, spec.name, self.layout.family)
                if behind is not None:
                    behind[slot].copy_(row)
        if self._apart is not None:
            self._apart.take(blocks)

    def _row(self, name: str, slot: int) -> Tensor:
        """What the expert in `slot` has of a column's tensor: a view."""
        tensor = self._tensors[name].detach()
        if self.layout.family.is_expert(name):  # held in slots, whatever the class does
            return tensor[slot]
        return part_of(tensor, name, self.layout, slot)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.compute_dtype is None or self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)


def build_shard(
    layout: Layout,
    columns: Iterable[int],
    blocks: AnyBlocks,
    *,
    device: str | torch.device = "cpu",
    compute_dtype: torch.dtype | None = None,
    seed: int = 0,
    masters: str = "fp32",
    experts: str = GROUPED,
    stand_ins: StandIns = AS_THEY_CAME,
    trunk: TrunkPart = ALL_OF_TRUNK,
) -> ShardModel:
    """The shard of `columns`. Needs every block where the others are frozen, else the trunk and the held columns.

    `compute_dtype` (bf16 on GPUs that have it) is what matrices are multiplied in; `masters`, a recipe's, is what
    weights are trained in, `trunk`, a lease's, what of the trunk is; `stand_ins` says how the other columns stand in;
    `experts` is how their products are taken (`moe.padded`), which is rounding alone. `seed` seeds torch, so that a
    lease starts from the same state of chance on any machine.
    """
    held = layout.check_columns(columns)
    _check_given(layout, held, blocks)
    torch.manual_seed(seed)
    family, values = layout.family, layout.config_json
    if layout.residency != FROZEN:
        values = family.shrunk(values, len(held))
    where = torch.device(device)
    dtype = compute_dtype or torch.float32
    # With every expert held in fp32 there is nothing for our experts function to do that torch's own does not, but for
    # biases, whose gradient torch's would scatter.
    everything = dtype == torch.float32 and len(held) == layout.columns and experts == GROUPED
    plain = everything and not family.undispatched and all(part.matrices for part in family.experts)
    module = meta_model(config_from_json(values), PLAIN_EXPERTS if plain else EXPERTS_IMPLEMENTATION)
    own = HeldTrunk(layout, trunk, masters_of(module, family, masters), dtype)
    kept = own.masters
    tensors = {spec.name: own.tensor(spec.name, blocks[TRUNK][spec.name], where) for spec in layout.trunk}
    apart = frozen_experts(layout, held, stand_ins, dtype, where)
    tensors |= expert_tensors(layout, held, blocks, where, dtype, kept, stand_ins, apart)
    if not plain:
        attach_all(module, layout, held, tensors, blocks, kept, apart)
    for path in experts_of(layout) if experts == PADDED else ():
        cast(Any, module.get_submodule(path)).is_padded = True
    if apart is not None:
        apart.take(blocks)
    materialise(module, tensors, layout.tied, where)
    own.begin(module)
    if dtype != torch.float32:
        route_in_fp32(module)
    return ShardModel(module, layout, held, compute_dtype, own, stand_ins, apart).train()


def _choices_of(module: PreTrainedModel, biases: Mapping[str, Tensor]) -> Choices:
    """Hooks on the experts of the layers that these biases lie in, in their order."""
    experts = expert_modules(module)
    sizes = {bias.numel() for bias in biases.values()}
    if len(sizes) != 1:
        raise LocalError(f"{type(module).__name__}: selection biases of {sorted(sizes)} values in one model")
    return Choices([experts[layer_of(name)] for name in biases], sizes.pop())


def _check_given(layout: Layout, held: tuple[int, ...], blocks: AnyBlocks) -> None:
    needed = layout.needed_blocks(held)
    missing = [block for block in needed if block not in blocks]
    if missing:
        raise LocalError(f"shard {list(held)}: blocks {missing[:5]} are missing ({layout.residency} residency)")
    check_blocks({block: blocks[block] for block in needed}, layout)


def _exact(tensor: Tensor) -> Tensor:
    # a row of one value has the stride of its column, which `contiguous` takes for good and a file cannot be written of
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor.detach())
