"""A shard that can be trained: the trunk and some expert columns, with whatever stands in for the others.

Decides how a lease's model is built, what of it is trained, and what its loss is. Holds always: the optimizer can see
only what is held; the router's balance loss is part of the loss, and a function of the whole batch; `held_blocks`
returns bitwise what was trained.

Frozen: a model of full size, the other experts without gradients. Absent: a smaller model of the same class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.balance import RoutedCounts, balance_loss, routed_counts
from moe.blocks import Blocks, check_blocks
from moe.config import config_from_json
from moe.experts import EXPERTS_IMPLEMENTATION, attach_experts
from moe.layout import Layout
from moe.skeleton import PLAIN_EXPERTS, materialise, meta_model
from protocol.errors import LocalError
from protocol.ids import TRUNK, column_block
from protocol.residency import FROZEN
from protocol.submission import Blocks as AnyBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """`total` is what is differentiated: nll + router_aux_loss_coef * balance."""

    total: Tensor
    nll: Tensor
    """Mean cross-entropy, nats a token."""
    balance: Tensor
    """Router balance loss before its coefficient; top-k when the load is even."""


class ShardModel:
    """One shard's model. Made by `build_shard`; lives for one lease or, through `load`, others of its columns."""

    def __init__(
        self, module: PreTrainedModel, layout: Layout, columns: tuple[int, ...], compute_dtype: torch.dtype | None
    ) -> None:
        self.module = module
        self.layout = layout
        self.columns = columns
        self.compute_dtype = compute_dtype
        self.balance_coefficient = layout.family.balance_coefficient(layout.config_json)
        self._top_k = int(layout.config_json["num_experts_per_tok"])

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

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is trained, each once."""
        return self.module.parameters()

    def parameter_groups(self, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups over what is held: matrices, the head, routers (their own rate), and what does not decay.

        Matrices, head and routers decay. Norm scales, biases and embeddings (with a tied head) do not: decaying a scale
        or a rare token's row pulls it to zero for reasons that are not in the data. A matrix group's `parts` says how
        many matrices lie one below the other in each of its parameters.
        """
        matrices: list[Tensor] = []
        fused: list[Tensor] = []
        head, routers, plain = [], [], []
        family = self.layout.family
        for name, parameter in self.module.named_parameters():
            if family.is_router(name):
                routers.append(parameter)
            elif parameter.ndim < 2 or name.endswith("embed_tokens.weight"):
                plain.append(parameter)
            elif name.endswith("lm_head.weight"):
                head.append(parameter)
            else:
                (fused if name.endswith(family.experts[0].suffix) else matrices).append(parameter)
        decayed = {"lr": lr, "weight_decay": weight_decay}
        groups = [
            {"params": matrices, **decayed, "name": "matrices", "parts": 1},
            {"params": fused, **decayed, "name": "fused", "parts": 2},
            {"params": head, **decayed, "name": "head"},
            {"params": routers, "lr": lr * router_lr_scale, "weight_decay": weight_decay, "name": "routers"},
            {"params": plain, "lr": lr, "weight_decay": 0.0, "name": "undecayed"},
        ]
        return [group for group in groups if group["params"]]

    def loss(self, tokens_BT1: Tensor, counts: RoutedCounts | None = None) -> LossParts:
        """Loss on sequences of T+1 tokens: each of the last T is predicted from those before it.

        Where they are a part of a batch, `counts` is what `count_routes` gives for the whole of it.
        """
        tokens_BT1 = tokens_BT1.to(self.device, torch.long)
        output, logits_by_layer = self._run(self.module, tokens_BT1)
        logits_SV = output.logits.float().flatten(0, 1)
        nll = nn.functional.cross_entropy(logits_SV, tokens_BT1[:, 1:].flatten())
        balance = balance_loss(logits_by_layer, counts or routed_counts(logits_by_layer, self._top_k))
        return LossParts(total=nll + self.balance_coefficient * balance, nll=nll, balance=balance)

    @torch.no_grad()
    def count_routes(self, tokens_BT1: Tensor) -> RoutedCounts:
        """Where the routers send the tokens of these sequences: the choices that `loss` makes, without its head."""
        _, logits_by_layer = self._run(self.module.base_model, tokens_BT1.to(self.device, torch.long))
        return routed_counts(logits_by_layer, self._top_k)

    def _run(self, module: nn.Module, tokens_BT1: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """The output of the model, or of what lies below its head, and each layer's router logits."""
        with self._autocast():
            output = module(input_ids=tokens_BT1[:, :-1], output_router_logits=True, use_cache=False)
        if not output.router_logits:
            raise LocalError("the model gave no router logits, so there is no balance loss")
        return output, output.router_logits

    def held_blocks(self) -> Blocks:
        """What is held, as blocks on the CPU with memory of their own: bitwise the present weights."""
        named = dict(self.module.named_parameters())
        blocks: Blocks = {TRUNK: {spec.name: _exact(named[spec.name]) for spec in self.layout.trunk}}
        for slot, column in enumerate(self.columns):
            blocks[column_block(column)] = {spec.name: _exact(named[spec.name][slot]) for spec in self.layout.column}
        return blocks

    @torch.no_grad()
    def load(self, blocks: AnyBlocks) -> None:
        """Take the weights of `blocks` (those that `build_shard` would want), in place."""
        _check_given(self.layout, self.columns, blocks)
        named = dict(self.module.named_parameters())
        for spec in self.layout.trunk:
            named[spec.name].copy_(blocks[TRUNK][spec.name])
        order = _slot_order(self.layout, self.columns)
        for spec in self.layout.column:
            target = _all_rows(self.module, spec.name)
            for slot, column in enumerate(order):
                row = blocks[column_block(column)][spec.name]
                target[slot].copy_(row)
                if slot < len(self.columns):
                    named[spec.name][slot].copy_(row)

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
) -> ShardModel:
    """The shard of `columns`. Needs every block where the others are frozen, else the trunk and the held columns.

    `compute_dtype` (bf16 on GPUs that have it) is what matrices are multiplied in; trained weights stay fp32. `seed`
    seeds torch, so that a lease starts from the same state of chance on any machine.
    """
    held = layout.check_columns(columns)
    _check_given(layout, held, blocks)
    torch.manual_seed(seed)
    family, values = layout.family, layout.config_json
    if layout.residency != FROZEN:
        values = family.shrunk(values, len(held))
    where = torch.device(device)
    dtype = compute_dtype or torch.float32
    # With every expert held in fp32 there is nothing for our experts function to do that torch's own does not.
    plain = dtype == torch.float32 and len(held) == values["num_experts"]
    module = meta_model(config_from_json(values), PLAIN_EXPERTS if plain else EXPERTS_IMPLEMENTATION)
    tensors = {spec.name: blocks[TRUNK][spec.name].to(where, copy=True) for spec in layout.trunk}
    order = _slot_order(layout, held)
    for spec in layout.column:
        rows_dtype = dtype if family.is_expert(spec.name) else torch.float32
        stacked = torch.empty((len(order), *spec.shape), device=where, dtype=rows_dtype)
        for slot, column in enumerate(order):
            stacked[slot].copy_(blocks[column_block(column)][spec.name])
        tensors[spec.name] = stacked
    if not plain:
        _attach_all(module, layout, held, tensors, blocks)
    materialise(module, tensors, layout.tied, where)
    return ShardModel(module, layout, held, compute_dtype).train()


def _attach_all(
    module: nn.Module, layout: Layout, held: tuple[int, ...], tensors: dict[str, Tensor], blocks: AnyBlocks
) -> None:
    """Move the expert tensors out of `tensors` into their modules, held ones first."""
    order = _slot_order(layout, held)
    # In a frozen shard the router counts experts of the whole model; in an absent one, those that are there.
    numbers = range(layout.columns) if layout.residency == FROZEN else range(len(held))
    slots = [order.index(number) for number in numbers] if layout.residency == FROZEN else list(numbers)
    projections = layout.family.projections
    parents = sorted({name.rpartition(".")[0] for name in tensors if layout.family.is_expert(name)})
    for parent in parents:
        weights = {projection: tensors.pop(f"{parent}.{projection}") for projection in projections}
        experts = module.get_submodule(parent)
        attach_experts(experts, slots, len(held), weights)
        for projection in projections:
            parameter = experts.get_parameter(projection)
            if parameter.data_ptr() == weights[projection].data_ptr():
                continue
            with torch.no_grad():  # the cast slice has lost bits: take the fp32 rows again
                for slot, column in enumerate(held):
                    parameter[slot].copy_(blocks[column_block(column)][f"{parent}.{projection}"])


def _slot_order(layout: Layout, held: tuple[int, ...]) -> tuple[int, ...]:
    """Columns in slot order: the held ones, then, where the residency is frozen, the others."""
    if layout.residency != FROZEN:
        return held
    return (*held, *(column for column in range(layout.columns) if column not in set(held)))


def _all_rows(module: nn.Module, name: str) -> Tensor:
    """The tensor that has a row for every slot of column parameter `name`."""
    parent, _, leaf = name.rpartition(".")
    buffers = dict(module.get_submodule(parent).named_buffers(recurse=False))
    return buffers.get(f"{leaf}_all", module.get_parameter(name))


def _check_given(layout: Layout, held: tuple[int, ...], blocks: AnyBlocks) -> None:
    needed = layout.needed_blocks(held)
    missing = [block for block in needed if block not in blocks]
    if missing:
        raise LocalError(f"shard {list(held)}: blocks {missing[:5]} are missing ({layout.residency} residency)")
    check_blocks({block: blocks[block] for block in needed}, layout)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
