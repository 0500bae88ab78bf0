"""Robust aggregation: W pseudo-gradients of P parameters become one, coordinate by coordinate.

Decides which reducer answers a rule's name and how the work is cut into chunks that stay in the cache. What holds
always: nothing non-finite or of another shape reaches a reducer (LocalError); the order of workers does not matter;
extra memory is one chunk a worker and a few more, whatever P is; and each rule commutes with scaling and shifting all
of its inputs alike, up to rounding. Weights come from the coordinator, never from a worker.

Legend: W workers, P parameters, C columns of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from aggregation.reducers import (
    ChunkReducer,
    median,
    trimmed_mean,
    weighted_mean,
    weighted_median,
    weighted_trimmed_mean,
)
from protocol.errors import LocalError

Rule = Literal["mean", "median", "trimmed_mean"]
RULES: tuple[Rule, ...] = get_args(Rule)

CHUNK_COLUMNS = 1 << 15


def aggregate(stack_WP: Tensor, weights_W: Sequence[float] | Tensor, rule: str) -> Tensor:
    """One row out of W: `stack_WP` is fp32 or fp64, weights are positive; the result is [P] of the same dtype.

    >>> aggregate(torch.tensor([[0.0], [1.0], [100.0]]), [1, 1, 1], "median")
    tensor([1.])
    """
    if stack_WP.dim() != 2:
        raise LocalError(f"aggregation: expected a [workers, parameters] tensor, got shape {tuple(stack_WP.shape)}")
    weights = weights_W.tolist() if isinstance(weights_W, Tensor) else weights_W
    return aggregate_rows(stack_WP.unbind(0), weights, rule)


def aggregate_rows(
    rows_P: Sequence[Tensor],
    weights: Sequence[float],
    rule: str,
    *,
    scales: Sequence[float] | None = None,
    chunk_columns: int = CHUNK_COLUMNS,
) -> Tensor:
    """As `aggregate`, over W separate rows, each multiplied by its scale on the way; they are never stacked whole."""
    scales = [1.0] * len(rows_P) if scales is None else scales
    _check_rows(rows_P)
    _check_factors("weight", weights, len(rows_P))
    _check_factors("scale", scales, len(rows_P))
    result_P = torch.empty_like(rows_P[0])
    width = max(1, min(chunk_columns, result_P.numel()))
    if rule_in_force(rule, len(rows_P)) == "mean":
        _mean_rows(rows_P, weighted_mean(weights, scales), result_P, width)
    else:
        _reduce_rows(rows_P, scales, robust_reducer(rule, weights), result_P, width)
    return result_P


def rule_in_force(rule: str, workers: int) -> Rule:
    """The rule that really answers: with fewer than three workers no value can be told from its only other, so mean."""
    for known in RULES:
        if rule == known:
            return known if workers >= 3 else "mean"
    raise LocalError(f"aggregation: expected a rule of {', '.join(RULES)}, got {rule!r}")


def robust_reducer(rule: str, weights: Sequence[float]) -> ChunkReducer:
    """What reduces a chunk under `median` or `trimmed_mean`; equal weights take the cheaper way to the same answer."""
    if min(weights) == max(weights):
        return median(len(weights)) if rule == "median" else trimmed_mean(len(weights))
    return weighted_median(weights) if rule == "median" else weighted_trimmed_mean(weights)


def _mean_rows(rows_P: Sequence[Tensor], reduce_chunk: ChunkReducer, result_P: Tensor, width: int) -> None:
    """In one pass over the rows; what is not finite in any of them is not finite in the result."""
    for start in range(0, result_P.numel(), width):
        out_C = result_P[start : start + width]
        rows_C = [row_P[start : start + width] for row_P in rows_P]
        reduce_chunk(rows_C, out_C)
        if not math.isfinite(float(out_C.sum())):
            _refuse_non_finite(rows_C, start)


def _reduce_rows(
    rows_P: Sequence[Tensor], scales: Sequence[float], reduce_chunk: ChunkReducer, result_P: Tensor, width: int
) -> None:
    """Copies each chunk, scaled, to where it can be checked and overwritten without leaving the cache."""
    buffer_WC = result_P.new_empty((len(rows_P), width))
    for start in range(0, result_P.numel(), width):
        out_C = result_P[start : start + width]
        chunk_WC = buffer_WC[:, : out_C.numel()]
        rows_C = list(chunk_WC.unbind(0))
        for row_C, row_P, scale in zip(rows_C, rows_P, scales, strict=True):
            torch.mul(row_P[start : start + width], scale, out=row_C)
        if not math.isfinite(float(chunk_WC.sum())):
            _refuse_non_finite(rows_C, start)
        reduce_chunk(rows_C, out_C)


def _check_rows(rows_P: Sequence[Tensor]) -> None:
    if not rows_P:
        raise LocalError("aggregation: expected at least one worker's row, got none")
    expected = rows_P[0]
    if expected.dtype not in (torch.float32, torch.float64):
        raise LocalError(f"aggregation: expected fp32 or fp64 rows, got {expected.dtype}")
    for index, row_P in enumerate(rows_P):
        if row_P.dim() != 1 or row_P.shape != expected.shape or row_P.dtype != expected.dtype:
            raise LocalError(
                f"aggregation: row {index}: expected {expected.dtype} [{expected.numel()}], "
                f"got {row_P.dtype} {list(row_P.shape)}"
            )


def _check_factors(what: str, factors: Sequence[float], workers: int) -> None:
    if len(factors) != workers:
        raise LocalError(f"aggregation: expected {workers} {what}s, got {len(factors)}")
    for index, factor in enumerate(factors):
        if not 0.0 < factor < math.inf:
            raise LocalError(f"aggregation: row {index}: expected a finite {what} above 0, got {factor}")


def _refuse_non_finite(rows_C: Sequence[Tensor], start: int) -> None:
    """Called when a sum was not finite, which finite values near the largest of their type can do, too."""
    for index, row_C in enumerate(rows_C):
        if not bool(torch.isfinite(row_C).all()):
            stop = start + row_C.numel()
            raise LocalError(f"aggregation: row {index} is not finite between coordinates {start} and {stop}")
