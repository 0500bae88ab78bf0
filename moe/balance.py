"""The router balance loss, as a function of a whole batch that need not be in memory at once.

Decides what the loss is: experts * sum_e f_e p_e, f_e being the choices of expert e for each token and p_e its mean
router probability, pooled over tokens and layers (Fedus et al. 2021, arXiv:2101.03961, as in `transformers`; top-k when
the load is even). f has no gradient and p is a mean over tokens, so once f of the batch is known the loss, and its
gradient, are the weighted means of those of its parts, however it is cut (docs/decisions/0021).

Shapes: S tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedCounts:
    """How often each expert was chosen by some tokens. Whole numbers, so sums are the same in any order."""

    by_expert: Tensor
    """[E] int64, over all layers."""
    rows: int
    """Tokens times layers."""

    def __add__(self, other: RoutedCounts) -> RoutedCounts:
        return RoutedCounts(by_expert=self.by_expert + other.by_expert, rows=self.rows + other.rows)


@torch.no_grad()
def routed_counts(logits_by_layer: Sequence[Tensor], top_k: int) -> RoutedCounts:
    """Where routers with these logits [S, E] send their tokens."""
    experts = logits_by_layer[0].shape[-1]
    counts_E = torch.zeros(experts, dtype=torch.int64, device=logits_by_layer[0].device)
    for logits_SE in logits_by_layer:
        counts_E += times_chosen(torch.topk(_shares(logits_SE), top_k, dim=-1).indices, experts)
    return RoutedCounts(by_expert=counts_E, rows=sum(logits_SE.shape[0] for logits_SE in logits_by_layer))


def times_chosen(chosen: Tensor, experts: int) -> Tensor:
    """How often each expert stands in `chosen`: [E] int64."""
    # as `transformers` counts: histc needs no wait for a GPU, and is deterministic there on whole numbers only
    countable = torch.float32 if chosen.device.type in ("cpu", "mps") else torch.int32
    return torch.histc(chosen.flatten().to(countable), bins=experts, min=0, max=experts).to(torch.int64)


def balance_loss(logits_by_layer: Sequence[Tensor], counts: RoutedCounts) -> Tensor:
    """The loss of tokens with these router logits [S, E], in a batch whose choices are `counts`; a scalar, fp32."""
    summed_E = torch.stack([_shares(logits_SE).sum(dim=0) for logits_SE in logits_by_layer]).sum(dim=0)
    probabilities_E = summed_E / sum(logits_SE.shape[0] for logits_SE in logits_by_layer)
    return torch.sum(counts.by_expert / counts.rows * probabilities_E) * probabilities_E.shape[0]


def _shares(logits_SE: Tensor) -> Tensor:
    """Router probabilities in fp32, as the routers take them: in bf16 other experts could tie."""
    return torch.softmax(logits_SE, dim=-1, dtype=torch.float32)
