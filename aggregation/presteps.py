"""Pre-steps: rows become mixtures of rows before a rule sees them, as a matrix of shares.

Each answers with `mixing_VW` (fp64, rows sum to 1) and the weights of the V mixed rows. Weights are spent in the
mixing: what happens to them afterwards is said in each.

Legend: W rows, V mixed rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from aggregation.distances import squared_distances
from aggregation.geometry import places
from aggregation.names import BUCKET_SIZE, PreStep
from aggregation.reducers import trimmed_count
from protocol.errors import LocalError

Mixing = tuple[Tensor | None, list[float]]


def mixing_for(pre: PreStep | None, gram_WW: Tensor | None, weights: Sequence[float], seed: int | None) -> Mixing:
    """What `pre` makes of the rows; None for no mixing. `nnm` needs inner products, `bucketing` a seed."""
    if pre is None:
        return None, list(weights)
    if pre == "nnm":
        if gram_WW is None:
            raise LocalError("aggregation: nearest-neighbour mixing needs the rows' inner products")
        return nearest_neighbour_mixing(gram_WW, weights)
    if seed is None:
        raise LocalError("aggregation: bucketing needs a seed that no worker knows, got none")
    return bucketing(weights, seed)


def nearest_neighbour_mixing(gram_WW: Tensor, weights: Sequence[float]) -> tuple[Tensor, list[float]]:
    """Each row becomes the weighted mean of the W - f rows nearest to it, itself included.

    y_i = sum_j w_j x_j / sum_j w_j over the W - f nearest j, f = `trimmed_count(W)` (Allouah et al. 2023,
    arXiv:2302.01772). It draws honest rows, whose data differ, towards each other, and tolerates f, as the rule after
    it does: with f liars far away, honest rows all become the honest mean. Breaks, as the rule does, at f + 1. Weights
    act in the mixing, and only there: mixed rows count alike afterwards.
    [W, W] fp64 -> [W, W] fp64. Of rows 0, 1, 3, 100 the first three become their mean, the last one (1 + 3 + 100) / 3:

    >>> rows = torch.tensor([[0.0], [1.0], [3.0], [100.0]], dtype=torch.float64)
    >>> mixing, weights = nearest_neighbour_mixing(rows @ rows.T, [1, 1, 1, 1])
    >>> [round(value, 3) for value in (mixing @ rows)[:, 0].tolist()], weights
    ([1.333, 1.333, 1.333, 34.667], [1.0, 1.0, 1.0, 1.0])
    """
    kept = len(weights) - trimmed_count(len(weights))
    shares_WW = places(squared_distances(gram_WW), kept) * torch.tensor(weights, dtype=torch.float64)
    return shares_WW / shares_WW.sum(dim=1, keepdim=True), [1.0] * len(weights)


def bucketing(weights: Sequence[float], seed: int) -> tuple[Tensor, list[float]]:
    """Rows are dealt at random into buckets of `BUCKET_SIZE`, and each bucket becomes its weighted mean.

    Karimireddy, He & Jaggi 2022 (arXiv:2006.09365). Buckets differ less among each other than rows do, which keeps a
    rule from mistaking an honest worker with unusual data for a liar; in exchange a liar spoils a whole bucket, so the
    rule after it tolerates `trimmed_count(buckets)` liars among all workers: about half of what it tolerates without.
    Liars who knew the deal would share buckets as suits them, so `seed` must be secret. A bucket weighs what its rows
    do, so that the mean of buckets is the mean of rows. Depends on the order of rows, which the seed permutes.
    W weights -> [V, W] fp64, V = ceil(W / 2).

    >>> mixing, weights = bucketing([1.0, 1.0, 2.0], seed=1)
    >>> mixing.shape, sum(weights)
    (torch.Size([2, 3]), 4.0)
    """
    generator = random.Random(seed)
    keys = [generator.random() for _ in weights]  # Python promises this sequence for a seed; `shuffle` it does not
    dealt = sorted(range(len(weights)), key=keys.__getitem__)
    buckets = [dealt[first : first + BUCKET_SIZE] for first in range(0, len(dealt), BUCKET_SIZE)]
    mixing_VW = torch.zeros((len(buckets), len(weights)), dtype=torch.float64)
    for bucket_W, members in zip(mixing_VW, buckets, strict=True):
        for member in members:
            bucket_W[member] = weights[member]
    totals_V = mixing_VW.sum(dim=1)
    return mixing_VW / totals_V[:, None], totals_V.tolist()
