"""The rules themselves, each as a function that reduces one finite chunk of coordinates.

A reducer is made once for a number of workers and their weights; it may overwrite the chunk that it is given, and
writes into `out_C`. Equal weights take the cheap path: a pruned sorting network over the workers, which never branches
on data. Unequal weights enter only after robustness is settled by rank, so that no weight buys influence over which
values are dropped, except in the weighted median, where weight is what is halved.

Legend: W workers, C columns (coordinates) of one chunk, T columns that have ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from aggregation.networks import Comparator, selection_network, sorting_network

Chunk = Sequence[Tensor]
"""W rows of C finite values each."""

ChunkReducer = Callable[[Chunk, Tensor], None]
"""Reduces a chunk [W, C] into [C]; all but combinations (the mean is one) overwrite it. Those ask for each row once."""

TRIM_SHARE = 0.25
"""Share of workers that the trimmed mean drops on each side: the demo's two liars among eight."""


def trimmed_count(workers: int) -> int:
    """How many liars every rule assumes among W rows: f = max(1, floor(W / 4)); 0 for fewer than three.

    The trimmed mean drops as many values on each side.

    >>> [trimmed_count(workers) for workers in (1, 2, 3, 4, 7, 8, 16)]
    [0, 0, 1, 1, 1, 2, 4]
    """
    return max(1, math.floor(workers * TRIM_SHARE)) if workers >= 3 else 0


def weighted_mean(weights: Sequence[float], scales: Sequence[float] | None = None) -> ChunkReducer:
    """sum_i w_i s_i x_i / sum_i w_i, per coordinate; s_i is 1 unless the rows still have to be scaled.

    Tolerates f = 0: one worker moves it as far as it likes. fp32 or fp64; [W, C] -> [C], reading each value once and
    overwriting none. The mean of (0, 4) under weights (3, 1) is 1.
    """
    total = math.fsum(weights)
    scales = [1.0] * len(weights) if scales is None else scales
    return combination([weight / total * scale for weight, scale in zip(weights, scales, strict=True)])


def combination(coefficients: Sequence[float], keep: float = 0.0) -> ChunkReducer:
    """sum_i a_i x_i, per coordinate, plus `keep` times what is in `out_C`; rows of coefficient 0 are not read.

    What rules that see whole blocks end in: they differ in how they come by their coefficients. fp32 or fp64;
    [W, C] -> [C], overwriting no row.
    """
    terms = [(index, coefficient) for index, coefficient in enumerate(coefficients) if coefficient != 0.0]

    def reduce_chunk(chunk_WC: Chunk, out_C: Tensor) -> None:
        first = 0
        if keep != 0.0:
            out_C *= keep
        elif terms:
            torch.mul(chunk_WC[terms[0][0]], terms[0][1], out=out_C)
            first = 1
        else:
            out_C.zero_()
        for index, coefficient in terms[first:]:
            out_C.add_(chunk_WC[index], alpha=coefficient)

    return reduce_chunk


def median(workers: int) -> ChunkReducer:
    """Middle value, or the mean of the two middle values, per coordinate (Yin et al. 2018, arXiv:1803.01498).

    Tolerates f < W / 2: with W >= 2f + 1 the result lies between honest values whatever f workers send; at W = 2f they
    move it without bound. fp32 or fp64; [W, C] -> [C]. Of (0, 1, 1e30) it is 1, of (0, 1, 3, 1e30) it is 2.
    """
    return _mean_of_ranks(workers, range((workers - 1) // 2, workers // 2 + 1))


def trimmed_mean(workers: int) -> ChunkReducer:
    """Mean of what is left when the f smallest and f largest values are dropped, per coordinate (ibid.).

    Tolerates f = `trimmed_count(W)`: the result lies between honest values; f + 1 allied workers move it without
    bound. fp32 or fp64; [W, C] -> [C]. Of (-1e30, 0, 2, 1e30) it is 1.
    """
    trimmed = trimmed_count(workers)
    return _mean_of_ranks(workers, range(trimmed, workers - trimmed))


def weighted_median(weights: Sequence[float]) -> ChunkReducer:
    """Value at which half of the weight lies on either side; the mean of two where the cut falls between them.

    With values in order and W_k the weight of the first k: lower = first with 2 W_k >= W, upper = first with
    2 W_k > W, result (lower + upper) / 2. Equal weights give the plain median. Tolerates any workers with less than
    half of the weight; breaks at half. fp32 or fp64; [W, C] -> [C]. Of (0, 1, 1e30) under (3, 1, 1) it is 0.
    """
    levels = _integer_weights(weights)
    network = sorting_network(len(weights))
    half = sum(levels) / 2

    def reduce_chunk(chunk_WC: Chunk, out_C: Tensor) -> None:
        values = list(chunk_WC)
        masses = [torch.full_like(out_C, level) for level in levels]
        _sort_pairs(values, masses, network)
        weight_up_to_C, reached_C, before_C, past_C = out_C.new_zeros((4, *out_C.shape))
        out_C.zero_()
        for value_C, mass_C in zip(values, masses, strict=True):
            weight_up_to_C += mass_C
            # 0 while less than half of the weight is passed, 1 at exactly half, 2 beyond: each step is half a share.
            torch.ge(weight_up_to_C, half, out=reached_C)
            reached_C += torch.gt(weight_up_to_C, half, out=past_C)
            out_C.addcmul_(value_C, torch.sub(reached_C, before_C, out=past_C), value=0.5)
            before_C.copy_(reached_C)

    return reduce_chunk


def weighted_trimmed_mean(weights: Sequence[float]) -> ChunkReducer:
    """Weighted mean of what is left when the f smallest and f largest values are dropped, per coordinate.

    f = `trimmed_count(W)` counts workers, whatever they weigh. Where values tie across the cut, those that tie share
    the places that are left, so that the order of workers does not matter. Tolerates f workers, breaks at f + 1.
    fp32 or fp64; [W, C] -> [C]. Of (-1e30, 0, 4, 1e30) under (1, 3, 1, 1) it is 1.
    """
    workers = len(weights)
    trimmed = trimmed_count(workers)
    network = selection_network(workers, (trimmed, workers - trimmed - 1), ordered=True)
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]

    def reduce_chunk(chunk_WC: Chunk, out_C: Tensor) -> None:
        wires = run_network([row_C.clone() for row_C in chunk_WC], network)
        low_C, high_C = wires[trimmed], wires[workers - trimmed - 1]
        kept_C, mass_C = torch.zeros_like(low_C), torch.zeros_like(low_C)
        out_C.zero_()
        inside_C, below_C = torch.empty_like(low_C), torch.empty_like(low_C)
        for row_C, share in zip(chunk_WC, shares, strict=True):
            torch.ge(row_C, low_C, out=inside_C)
            inside_C *= torch.le(row_C, high_C, out=below_C)
            kept_C += inside_C
            mass_C.add_(inside_C, alpha=share)
            out_C.addcmul_(row_C, inside_C, value=share)
        out_C /= mass_C
        ties_T = torch.nonzero(kept_C != workers - 2 * trimmed).squeeze(1)
        if ties_T.numel():
            out_C[ties_T] = _trimmed_with_ties(
                torch.stack([row_C[ties_T] for row_C in chunk_WC]), low_C[ties_T], high_C[ties_T], shares, trimmed
            )

    return reduce_chunk


def any_median(weights: Sequence[float]) -> ChunkReducer:
    """The weighted median; equal weights take the cheaper way to the same answer."""
    return median(len(weights)) if min(weights) == max(weights) else weighted_median(weights)


def any_trimmed_mean(weights: Sequence[float]) -> ChunkReducer:
    """The weighted trimmed mean, likewise."""
    return trimmed_mean(len(weights)) if min(weights) == max(weights) else weighted_trimmed_mean(weights)


def _trimmed_with_ties(
    values_WT: Tensor, low_T: Tensor, high_T: Tensor, shares: Sequence[float], trimmed: int
) -> Tensor:
    """Weighted trimmed mean where several values equal the smallest or largest one kept, `low_T` or `high_T`."""
    kept_ranks = len(shares) - trimmed
    shares_W1 = values_WT.new_tensor(shares).unsqueeze(1)
    inside_WT = ((values_WT > low_T) & (values_WT < high_T)) * shares_W1
    mass_T, sum_T = inside_WT.sum(0), (inside_WT * values_WT).sum(0)
    for edge_T, beyond_WT in ((low_T, values_WT <= low_T), (high_T, values_WT >= high_T)):
        tied_WT = values_WT == edge_T
        places_T = beyond_WT.sum(0).clamp(max=kept_ranks) - trimmed
        edge_mass_T = (tied_WT * shares_W1).sum(0) / tied_WT.sum(0) * places_T
        mass_T = mass_T + edge_mass_T
        sum_T = sum_T + edge_mass_T * edge_T
    return sum_T / mass_T


def _sort_pairs(values: list[Tensor], masses: list[Tensor], network: Sequence[tuple[int, int]]) -> None:
    """Sort by value and take each value's mass along, all in place.

    Masks are floats and swaps are sums, exact on whole numbers: torch's `where` and comparisons into bool take 5 to 25
    times as long as its arithmetic (one thread, 32k columns).
    """
    swapped_C, moved_C = torch.empty_like(values[0]), torch.empty_like(values[0])
    spare_C = torch.empty_like(values[0])
    for low, high in network:
        torch.gt(values[low], values[high], out=swapped_C)
        torch.sub(masses[high], masses[low], out=moved_C)
        moved_C *= swapped_C
        masses[low] += moved_C
        masses[high] -= moved_C
        torch.minimum(values[low], values[high], out=spare_C)
        torch.maximum(values[low], values[high], out=values[high])
        values[low], spare_C = spare_C, values[low]


def run_network(chunk_WC: Chunk, network: Sequence[Comparator]) -> list[Tensor]:
    """The wires after all comparators; overwrites the chunk, with one spare row that takes turns.

    By numpy, over the same memory: on rows that fit a cache its minimum takes two thirds of the time of torch's.
    """
    rows = [*chunk_WC, torch.empty_like(chunk_WC[0])]
    arrays = [row_C.numpy() for row_C in rows]
    lies, spare = list(range(len(chunk_WC))), len(chunk_WC)
    for step in network:
        low, high = lies[step.low], lies[step.high]
        if not step.needs_max:
            np.minimum(arrays[low], arrays[high], out=arrays[low])
        elif not step.needs_min:
            np.maximum(arrays[low], arrays[high], out=arrays[high])
        else:
            np.minimum(arrays[low], arrays[high], out=arrays[spare])
            np.maximum(arrays[low], arrays[high], out=arrays[high])
            lies[step.low], spare = spare, low
    return [rows[place] for place in lies]


def _mean_of_ranks(workers: int, ranks: range) -> ChunkReducer:
    network = selection_network(workers, tuple(ranks))
    share = 1.0 / len(ranks)

    def reduce_chunk(chunk_WC: Chunk, out_C: Tensor) -> None:
        wires = run_network(chunk_WC, network)
        torch.mul(wires[ranks[0]], share, out=out_C)
        for rank in ranks[1:]:
            out_C.add_(wires[rank], alpha=share)

    return reduce_chunk


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers whose sums and halves are exact in fp32, so that no rounding decides a tie.

    The factor is a power of two: weights that are whole numbers, or halves of them, keep their exact proportions.
    """
    largest_total = 1 << 23
    factor = 2.0 ** math.floor(math.log2(largest_total / len(weights) / max(weights)))
    return [max(1, round(weight * factor)) for weight in weights]
