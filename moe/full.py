"""The whole model: where a run starts, and how good a version is.

Decides initial values and how held-out loss is measured; touches no files. Holds always: initial values depend only on
(seed, parameter name, expert), so any one block can be made without the others, and however columns are cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from moe.blocks import Block, Blocks, check_blocks, merge_blocks, part_of
from moe.config import config_from_json
from moe.head import Head
from moe.layout import Layout, ParamSpec
from moe.skeleton import first_value, materialise, meta_model, own_tensors
from protocol.errors import LocalError
from protocol.ids import BlockId, column_block, column_of


def initial_blocks(config: PreTrainedConfig, layout: Layout, seed: int) -> Blocks:
    """Fresh weights, distributed as `transformers` initialises them: normal matrices, the rest as its class says."""
    return dict(each_initial_block(config, layout, seed))


def each_initial_block(config: PreTrainedConfig, layout: Layout, seed: int) -> Iterator[tuple[BlockId, Block]]:
    """The same, one block at a time."""
    beginning = _Beginning(config, layout, seed)
    return ((block, beginning.block(block)) for block in layout.blocks)


class _Beginning:
    """First values. Matrices are drawn here; what else a module has, its class fills, seeded likewise."""

    def __init__(self, config: PreTrainedConfig, layout: Layout, seed: int) -> None:
        self._layout = layout
        self._seed = seed
        self._std = float(config.initializer_range)
        self._pad_id = config.pad_token_id
        self._model = meta_model(config)

    def block(self, block: BlockId) -> Block:
        """All of one block."""
        return {spec.name: self._tensor(spec, block) for spec in self._layout.block_specs(block)}

    def _tensor(self, spec: ParamSpec, block: BlockId) -> Tensor:
        column = column_of(block)
        expert = None if column is None else self._layout.expert_of(column)
        owner = block if expert is None else column_block(expert)  # of however many parts a column is cut into
        key = hashlib.sha256(f"{self._seed}\0{owner}\0{spec.name}".encode()).digest()
        seed = int.from_bytes(key[:8], "little") >> 1
        part = self._layout.family.per_expert(spec.name)
        matrix = bool(part.matrices) if part is not None else len(spec.shape) == 2 and spec.name.endswith(".weight")
        if matrix:
            tensor = torch.empty(spec.shape).normal_(0.0, self._std, generator=torch.Generator().manual_seed(seed))
            if spec.name.endswith("embed_tokens.weight") and self._pad_id is not None:
                tensor[self._pad_id].zero_()
            return tensor
        if (hashed := self._layout.family.hashed) and spec.name.endswith(hashed):
            return _hash_table(spec.shape, self._layout.experts, seed)
        whole = first_value(self._model, spec.name, seed).to(torch.float32)
        own = whole if expert is None else part_of(whole, spec.name, self._layout, expert)
        return own.clone(memory_format=torch.contiguous_format)


def _hash_table(shape: tuple[int, ...], experts: int, seed: int) -> Tensor:
    """For each token of a vocabulary as many different experts as it is sent to, at random: [V, K] whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.rand((experts,), generator=generator).topk(shape[1]).indices for _ in range(shape[0])]
    return torch.stack(rows).to(torch.float32)


def full_model(layout: Layout, blocks: Mapping[BlockId, Mapping[str, Tensor]]) -> PreTrainedModel:
    """The whole model of these blocks, in fp32 on the CPU, in evaluation mode."""
    state = merge_blocks(blocks, layout)
    aliases = {alias for alias, _ in layout.tied}
    model = meta_model(config_from_json(layout.config_json))
    own = {name: tensor for name, tensor in state.items() if name not in aliases}
    materialise(model, own, layout.tied, torch.device("cpu"))
    model.train(False)
    return model


@torch.no_grad()
def load_blocks(model: nn.Module, layout: Layout, blocks: Mapping[BlockId, Mapping[str, Tensor]]) -> None:
    """Overwrite, in place, the blocks that are given; the model keeps the others."""
    check_blocks(blocks, layout)
    for block, tensors in blocks.items():
        parameters = block_parameters(model, layout, block)
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def block_parameters(model: nn.Module, layout: Layout, block: BlockId) -> dict[str, Tensor]:
    """The memory in which a whole model holds a block, by parameter, without gradients."""
    column = column_of(block)
    tensors = own_tensors(model)
    named = {spec.name: tensors[spec.name].detach() for spec in layout.block_specs(block)}
    if column is None:
        return named
    return {name: part_of(whole, name, layout, layout.expert_of(column)) for name, whole in named.items()}


@torch.inference_mode()
def sequence_losses(model: PreTrainedModel, tokens_NT1: Tensor, batch: int) -> Tensor:
    """Cross-entropy of each of the N sequences, nats a token: loss_N, fp64, on the CPU.

    A model that has gone wrong gives NaN or infinity: the caller decides what that means.
    """
    if tokens_NT1.ndim != 2 or tokens_NT1.shape[0] < 1 or tokens_NT1.shape[1] < 2:
        raise LocalError(f"evaluation needs at least one sequence of two tokens, got shape {tuple(tokens_NT1.shape)}")
    device, head, losses = next(model.parameters()).device, Head(model), []
    model.train(False)
    for chunk_BT1 in torch.split(tokens_NT1, max(1, batch)):
        tokens_BT1 = chunk_BT1.to(device, torch.long)
        hidden_BTH = head.hidden(tokens_BT1[:, :-1])
        loss_S = head.losses(hidden_BTH, tokens_BT1[:, 1:].flatten(), hidden_BTH.dtype)
        losses.append(loss_S.view(len(tokens_BT1), -1).double().mean(dim=1).cpu())
    return torch.cat(losses)


def mean_and_error(values_N: Tensor) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is not known: NaN."""
    count = values_N.shape[0]
    error = float(values_N.std()) / math.sqrt(count) if count > 1 else math.nan
    return float(values_N.mean()), error


def evaluate_loss(model: PreTrainedModel, tokens_NT1: Tensor, batch: int) -> tuple[float, float]:
    """Mean cross-entropy (nats a token) and its standard error over the N sequences."""
    return mean_and_error(sequence_losses(model, tokens_NT1, batch))
