"""Weights that are trained in bf16: which of a model's they are, how they are kept, and how products are taken of them.

Decides by what a tensor is for: matrices, fused or not, the head and the embeddings are kept to bf16 values; norms,
biases, routers and what else is small stay fp32, since little is saved there and much is lost. That is a shard's
arithmetic, the same on every machine. How such a value is *kept* changes nothing that is computed: in two bytes, where
it is the weight of a plain linear layer or embedding, or of experts that are multiplied in bf16; in fp32, as a value
that bf16 has, where a class does something of its own with it, and where experts are multiplied in fp32 anyway.

Holds always: what is multiplied is what is kept, and a gradient is fp32 whatever its weight is kept in: sums over
micro-batches lose nothing. See docs/decisions/0047.

Shapes: T tokens in any number of dimensions, S tokens, H hidden, N outputs, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.families import Family
from moe.optimised import ROUNDED, OptimiserGroups
from protocol.recipe import BF16_MASTERS

_PLAIN: Final[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masters:
    """What of one model is kept to bf16 values, by its names in the state dict."""

    rounded: frozenset[str] = frozenset()
    """All that has bf16 values."""
    halved: frozenset[str] = frozenset()
    """What of it is kept in two bytes, whatever products are taken in; experts are the experts' own (moe.experts)."""

    def begun(self, name: str, tensor: Tensor) -> Tensor:
        """What training of `tensor` begins with: itself, or the nearest bf16 values, kept as they are kept."""
        if name not in self.rounded:
            return tensor
        nearest = tensor.to(torch.bfloat16)
        return nearest if name in self.halved else nearest.to(torch.float32)


FP32: Final = Masters()


def masters_of(model: PreTrainedModel, family: Family, kind: str) -> Masters:
    """Those of a model that has no memory yet; `kind` is a recipe's `masters`."""
    if kind != BF16_MASTERS:
        return FP32
    sorter = OptimiserGroups(model, family)
    named = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and sorter.kind(name, parameter) in ROUNDED
    }
    odd = {id(parameter) for module in model.modules() for parameter in _own(module) if not _is_plain(module)}
    odd |= {id(child.weight) for module in model.modules() for child in _read_otherwise(module)}
    return Masters(
        rounded=frozenset(named),
        halved=frozenset(name for name, parameter in named.items() if id(parameter) not in odd),
    )


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _is_plain(module: nn.Module) -> bool:
    plain = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    return plain is not None and type(module).forward is plain.forward


def _read_otherwise(module: nn.Module) -> list[Any]:
    """Layers of `module` whose weights its class takes products of by itself."""
    source = _source_of(cast(Any, type(module)))
    return [
        child
        for name, child in module.named_children()
        if isinstance(child, _PLAIN) and f"self.{name}.weight" in source
    ]


@functools.cache
def _source_of(kind: type[nn.Module]) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def compute_from_halves(model: PreTrainedModel) -> None:
    """Let the modules whose weights are kept in two bytes take products in the dtype of what they are given."""
    for module in model.modules():
        halved = [parameter for parameter in _own(module) if parameter.dtype == torch.bfloat16]
        for parameter in halved:
            parameter.grad_dtype = torch.float32
        if halved and isinstance(module, nn.Linear):
            cast(Any, module).forward = partial(_linear, module)
        elif halved and isinstance(module, nn.Embedding):
            cast(Any, module).forward = partial(_embedding, module)


def _linear(module: nn.Linear, x_TH: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x_TH.device.type):
        return nn.functional.linear(x_TH, module.weight, module.bias)
    # flat, because what a function of ours answers must not be a view: classes clamp in place
    out_SN = cast(Any, _Linear).apply(x_TH.reshape(-1, x_TH.shape[-1]), module.weight, module.bias)
    return cast(Tensor, out_SN.view(*x_TH.shape[:-1], -1))


class _Linear(torch.autograd.Function):
    """y_SN = x_SH · W_NHᵀ + b_N, of a weight that is cast to x's dtype whenever it is used, and not kept so."""

    @staticmethod
    def forward(ctx: Any, x_SH: Tensor, weight_NH: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_SH, weight_NH)
        return nn.functional.linear(x_SH, weight_NH.to(x_SH.dtype), bias_N)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x_SH, weight_NH = ctx.saved_tensors
        grad_SN = grads[0]
        grad_x_SH = grad_SN @ weight_NH.to(grad_SN.dtype) if ctx.needs_input_grad[0] else None
        grad_NH = grad_SN.t() @ x_SH if ctx.needs_input_grad[1] else None
        return grad_x_SH, grad_NH, grad_SN.sum(dim=0) if ctx.needs_input_grad[2] else None


def _embedding(module: nn.Embedding, tokens_T: Tensor) -> Tensor:
    padding = -1 if module.padding_idx is None else module.padding_idx
    return cast(Tensor, cast(Any, _Embedding).apply(tokens_T, module.weight, padding))


class _Embedding(torch.autograd.Function):
    """Rows of a table, in fp32; so are their gradients."""

    @staticmethod
    def forward(ctx: Any, tokens_T: Tensor, weight_VH: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(tokens_T)
        ctx.rows, ctx.padding = weight_VH.shape[0], padding
        return nn.functional.embedding(tokens_T, weight_VH).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor, None]:
        (tokens_T,) = ctx.saved_tensors
        backward = torch.ops.aten.embedding_dense_backward
        return None, backward(grads[0].contiguous(), tokens_T, ctx.rows, ctx.padding, False), None
