"""How far rows lie from each other, over all pieces of a block as one vector: the Gram matrix of centred rows.

Everything that Krum, the geometric median, clipping and nearest-neighbour mixing ask about P parameters follows from
W x W inner products: each of them answers with a weighted combination of the rows.

Decides where the rows are centred, which decides what precision is left: |a - b|^2 = |a|^2 + |b|^2 - 2ab loses what
the two have in common. Raw weights at update / weight = 1e-3 lose a third of every distance in fp32 (Flower's
Multi-Krum does), and one liar at 1e30 would take all of it where rows are centred on the mean. So chunks are fp64, and
each is centred on that row whose norm there is the median: with fewer liars than honest rows it is no longer than some
honest row. A centre that differs between chunks is still one vector for all rows. Squares of fp32's largest value are
finite in fp64.

Legend: W workers (rows), V mixed rows, C columns of one chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aggregation.pieces import Rows, refuse_non_finite
from aggregation.reducers import ChunkReducer
from protocol.errors import LocalError

NOISE_SHARE = 1e-13
"""Squared distances under this share of the squared norms they are the difference of are rounding, and count as 0."""

SMALLEST_SQUARES = 1e-20
"""A row's sum of squares in a chunk above which those that fp32 cannot hold (under 1e-38) are nothing beside it."""


def centred_gram(rows: Rows, width: int, mixing_VW: Tensor | None = None) -> Tensor:
    """Inner products [V, V], fp64, of the scaled (mixed) rows about one common centre; V = W where nothing is mixed.

    Mixed rows are made anew here, not followed through the inner products of unmixed ones: where +1e30 and -1e30 meet
    in one mixture, their inner products cancel to noise, of which any distance could come. Extra memory: one fp64 chunk
    a row, and one of the rows' own dtype where they are mixed.
    """
    mixed = len(rows) if mixing_VW is None else len(mixing_VW)
    gram_VV = torch.zeros((mixed, mixed), dtype=torch.float64)
    wide_buffer_VC = torch.empty((mixed, width), dtype=torch.float64)
    buffer_WC = torch.empty((len(rows), 0 if mixing_VW is None else width), dtype=rows.dtype)
    for span in rows.spans(width):
        wide_VC = wide_buffer_VC[:, : span.length]
        if mixing_VW is None:
            norms_V = rows.load_wide(span, wide_VC)
        else:
            chunk_WC = buffer_WC[:, : span.length]
            rows.load(span, chunk_WC)
            norms_V = torch.linalg.vector_norm(mix(mixing_VW, chunk_WC, wide_VC), dim=1)
        middle = int(torch.argsort(norms_V)[(mixed - 1) // 2])
        wide_VC -= wide_VC[middle].clone()
        gram_VV.addmm_(wide_VC, wide_VC.T)
    return _measurable(gram_VV)


def start_and_gram(
    rows: Rows, mixing_VW: Tensor | None, start: ChunkReducer, result: list[Tensor], width: int
) -> Tensor:
    """Write what `start` makes of the (mixed) rows into `result`, one flat tensor a piece; inner products about it.

    Products are taken in the rows' own dtype (in fp64 where rows are mixed) and summed over chunks in fp64. That does:
    the differences are small where rows are near the start, an fp32 product is off by 1e-6 of the two lengths, and the
    coefficients that follow bring no row in with more than a clipped length. A chunk whose squares fp32 cannot hold, or
    of which it would lose too many, is taken in fp64.
    """
    if mixing_VW is not None:
        return _mixed_start_and_gram(rows, mixing_VW, start, result, width)
    gram_WW = torch.zeros((len(rows), len(rows)), dtype=torch.float64)
    buffers_2WC = torch.empty((2, len(rows), width), dtype=rows.dtype)
    for span in rows.spans(width):
        chunk_WC, spare_WC = buffers_2WC[:, :, : span.length]
        rows.load_unchecked(span, chunk_WC)
        out_C = result[span.piece][span.start : span.stop]
        start(list(spare_WC.copy_(chunk_WC).unbind(0)), out_C)
        products_WW = torch.matmul(torch.sub(chunk_WC, out_C, out=spare_WC), spare_WC.T).double()
        if not (math.isfinite(float(products_WW.sum())) and float(products_WW.diagonal().min()) > SMALLEST_SQUARES):
            refuse_non_finite(chunk_WC.unbind(0), span)
            wide_WC = chunk_WC.double() - out_C
            products_WW = wide_WC @ wide_WC.T
        gram_WW += products_WW
    return _measurable(gram_WW)


def _mixed_start_and_gram(
    rows: Rows, mixing_VW: Tensor, start: ChunkReducer, result: list[Tensor], width: int
) -> Tensor:
    mixed = len(mixing_VW)
    gram_VV = torch.zeros((mixed, mixed), dtype=torch.float64)
    buffer_WC = torch.empty((len(rows), width), dtype=rows.dtype)
    wide_buffer_VC = torch.empty((mixed, width), dtype=torch.float64)
    for span in rows.spans(width):
        chunk_WC, wide_VC = buffer_WC[:, : span.length], wide_buffer_VC[:, : span.length]
        rows.load(span, chunk_WC)
        chunk_VC = mix(mixing_VW, chunk_WC, wide_VC).to(rows.dtype, copy=True)
        out_C = result[span.piece][span.start : span.stop]
        start(list(chunk_VC.unbind(0)), out_C)
        wide_VC -= out_C
        gram_VV.addmm_(wide_VC, wide_VC.T)
    return _measurable(gram_VV)


def mix(mixing_VW: Tensor, chunk_WC: Tensor, wide_VC: Tensor) -> Tensor:
    """Write the chunk after a pre-step into `wide_VC`, fp64.

    All V rows at once, alike in each pass, so that what is combined is what was measured; in fp64, since mixtures of
    the same rows in another order must tie to `geometry.TIE_SHARE`, and in fp32 they do not.
    """
    return torch.matmul(mixing_VW, chunk_WC.double(), out=wide_VC)


def squared_distances(gram_WW: Tensor) -> Tensor:
    """Squared L2 distances [W, W] between rows whose inner products about any centre are `gram_WW`.

    >>> squared_distances(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)).tolist()
    [[0.0, 5.0], [5.0, 0.0]]
    """
    squares_W = gram_WW.diagonal()
    sums_WW = squares_W[:, None] + squares_W[None, :]
    distances_WW = sums_WW - gram_WW - gram_WW.T
    distances_WW[distances_WW <= NOISE_SHARE * sums_WW] = 0.0
    return distances_WW.fill_diagonal_(0.0)


def distances_to(gram_WW: Tensor, coefficients_W: Tensor) -> Tensor:
    """L2 distances [W] from each row to centre + sum_i a_i (x_i - centre), for any coefficients a.

    Of this form, and not of squared distances, because a row at 1e30 with a coefficient of 1e-30 leaves it precise.
    """
    products_W = gram_WW @ coefficients_W
    squares_W = gram_WW.diagonal() - 2.0 * products_W + coefficients_W @ products_W
    return squares_W.clamp(min=0.0).sqrt()


def _measurable(gram_WW: Tensor) -> Tensor:
    if not bool(torch.isfinite(gram_WW).all()):
        raise LocalError("aggregation: rows hold values whose squares fp64 cannot sum (above 1e150); clip them first")
    return gram_WW
