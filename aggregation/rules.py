"""Robust aggregation: W pseudo-gradients become one.

Decides how a rule is carried out: which passes are made over the rows, cut into chunks that stay in the cache.
Rules of one coordinate (median, trimmed mean) take one; rules that see the block as one vector take one for the inner
products and one to combine the rows with what followed from them; nearest-neighbour mixing takes one more before.
Rules are the table in `aggregation.names`; each rule's formula, bounds and use of weights stand with it (`reducers`,
`geometry`, `presteps`).

Always: nothing non-finite or of another shape reaches a rule (LocalError), so no result is NaN; the order of workers
does not matter (but for bucketing, which permutes it by a secret seed); extra memory is a few chunks a worker and the
result, whatever P is; each rule commutes with scaling and shifting all of its inputs alike, up to rounding. Weights
come from the coordinator, never from a worker.

Legend: W workers, V rows after a pre-step, P parameters, C columns of one chunk.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aggregation.distances import centred_gram, mix, start_and_gram
from aggregation.names import BASES, RULES, RuleName, Sees, rule_in_force
from aggregation.pieces import Piece, Rows, check_weights, checked_rows, refuse_non_finite
from aggregation.presteps import mixing_for
from aggregation.reducers import ChunkReducer, any_median, combination
from protocol.errors import LocalError

__all__ = ["CHUNK_COLUMNS", "RULES", "aggregate", "aggregate_pieces", "aggregate_rows", "rule_in_force"]

CHUNK_COLUMNS = 1 << 15


def aggregate(stack_WP: Tensor, weights_W: Sequence[float] | Tensor, rule: str, *, seed: int | None = None) -> Tensor:
    """One row out of W: `stack_WP` is fp32 or fp64, weights are positive; the result is [P] of the same dtype.

    >>> aggregate(torch.tensor([[0.0], [1.0], [100.0]]), [1, 1, 1], "median")
    tensor([1.])
    """
    if stack_WP.dim() != 2:
        raise LocalError(f"aggregation: expected a [workers, parameters] tensor, got shape {tuple(stack_WP.shape)}")
    weights = weights_W.tolist() if isinstance(weights_W, Tensor) else weights_W
    return aggregate_rows(stack_WP.unbind(0), weights, rule, seed=seed)


def aggregate_rows(
    rows_P: Sequence[Tensor],
    weights: Sequence[float],
    rule: str,
    *,
    scales: Sequence[float] | None = None,
    seed: int | None = None,
    chunk_columns: int = CHUNK_COLUMNS,
) -> Tensor:
    """As `aggregate`, over W separate rows, each multiplied by its scale on the way; they are never stacked whole."""
    for index, row_P in enumerate(rows_P):
        if row_P.dim() != 1:
            raise LocalError(f"aggregation: row {index}: expected one dimension, got shape {tuple(row_P.shape)}")
    pieces = [[row_P] for row_P in rows_P]
    return aggregate_pieces(pieces, weights, rule, scales=scales, seed=seed, chunk_columns=chunk_columns)[0]


def aggregate_pieces(
    rows: Sequence[Sequence[Piece]],
    weights: Sequence[float],
    rule: str,
    *,
    scales: Sequence[float] | None = None,
    seed: int | None = None,
    chunk_columns: int = CHUNK_COLUMNS,
    finite: bool = False,
) -> list[Tensor]:
    """W rows, each a list of pieces that are one vector together; the result has the same, as tensors in memory.

    `seed` is the secret behind bucketing; other rules draw nothing. `finite`: that all values are is known, and need
    not be looked for.

    >>> far = [torch.tensor([[9.0]]), torch.tensor([0.0])]
    >>> near = [torch.tensor([[0.0]]), torch.tensor([1.0])]
    >>> aggregate_pieces([near, near, far], [1, 1, 1], "krum")
    [tensor([[0.]]), tensor([1.])]
    """
    checked = checked_rows(rows, scales)
    check_weights(weights, len(checked))
    name = rule_in_force(rule, len(checked))
    result = [torch.empty(tuple(piece.shape), dtype=checked.dtype) for piece in rows[0]]
    flat = [piece.view(-1) for piece in result]
    width = checked.width(chunk_columns)
    if BASES[name.base].sees is Sees.SUM:
        _mean(checked, _function(name)(weights, checked.scales), flat, width)
    else:
        _robust(checked, weights, name, seed, flat, width, finite=finite)
    return result


def _function(name: RuleName) -> Any:
    """What stands in the rule's row; `Sees` says what it is called with and what it answers."""
    module, _, function = BASES[name.base].function.partition(":")
    return getattr(importlib.import_module(module), function)


def _robust(
    rows: Rows,
    weights: Sequence[float],
    name: RuleName,
    seed: int | None,
    result: list[Tensor],
    width: int,
    *,
    finite: bool,
) -> None:
    gram_WW = centred_gram(rows, width) if name.pre == "nnm" else None
    mixing_VW, mixed_weights = mixing_for(name.pre, gram_WW, weights, seed)
    sees, function = BASES[name.base].sees, _function(name)
    if sees is Sees.COORDINATES:
        _reduce(rows, mixing_VW, function(mixed_weights), result, width, finite=finite)
    elif sees is Sees.DISTANCES:
        coefficients_V = function(centred_gram(rows, width, mixing_VW), mixed_weights)
        _combine(rows, mixing_VW, coefficients_V, 0.0, result, width)
    else:
        gram_VV = start_and_gram(rows, mixing_VW, any_median(mixed_weights), result, width)
        coefficients_V = function(gram_VV, mixed_weights)
        _combine(rows, mixing_VW, coefficients_V, 1.0 - float(coefficients_V.sum()), result, width)


def _mean(rows: Rows, reduce_chunk: ChunkReducer, result: list[Tensor], width: int) -> None:
    """In one pass over the rows; what is not finite in any of them is not finite in the result."""
    for span in rows.spans(width):
        out_C = result[span.piece][span.start : span.stop]
        views_C = rows.views(span)
        reduce_chunk(views_C, out_C)
        if not math.isfinite(float(out_C.sum())):
            refuse_non_finite(views_C, span)


def _reduce(
    rows: Rows,
    mixing_VW: Tensor | None,
    reduce_chunk: ChunkReducer,
    result: list[Tensor],
    width: int,
    *,
    finite: bool = False,
) -> None:
    """Copies each chunk, scaled and mixed, to where it can be checked and overwritten without leaving the cache."""
    buffer_WC = torch.empty((len(rows), width), dtype=rows.dtype)
    wide_buffer_VC = torch.empty((0 if mixing_VW is None else len(mixing_VW), width), dtype=torch.float64)
    for span in rows.spans(width):
        chunk_VC = buffer_WC[:, : span.length]
        (rows.load_unchecked if finite else rows.load)(span, chunk_VC)
        if mixing_VW is not None:
            chunk_VC = mix(mixing_VW, chunk_VC, wide_buffer_VC[:, : span.length]).to(rows.dtype, copy=True)
        reduce_chunk(list(chunk_VC.unbind(0)), result[span.piece][span.start : span.stop])


def _combine(
    rows: Rows, mixing_VW: Tensor | None, coefficients_V: Tensor, keep: float, result: list[Tensor], width: int
) -> None:
    """sum_i a_i y_i + keep x result, of (mixed) rows y that a pass before this one has found finite."""
    coefficients = coefficients_V.tolist()
    if mixing_VW is not None:
        _reduce(rows, mixing_VW, combination(coefficients, keep), result, width)
        return
    scaled = [share * scale for share, scale in zip(coefficients, rows.scales, strict=True)]
    reduce_chunk = combination(scaled, keep)
    for span in rows.spans(width):
        reduce_chunk(rows.views(span), result[span.piece][span.start : span.stop])
