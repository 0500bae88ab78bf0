"""Rules that see a block as one vector: from inner products to the coefficient that each row gets in the result.

Each takes the Gram matrix of rows about a common centre (`aggregation.distances`), [W, W] fp64, and the rows' weights;
its answer, [W] fp64, is what the rows are to be combined with. Coefficients are 0 or more, so no sum along the way
exceeds its largest term. f = `trimmed_count(W)` liars are assumed, whatever they weigh, out of W >= 3 rows.

Where distances tie at a cut, those that tie share the places that are left, so that the order of workers decides
nothing.

Legend: W rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from aggregation.distances import distances_to, squared_distances
from aggregation.reducers import trimmed_count

TIE_SHARE: Final = 1e-9
"""Relative difference below which two sums of squared distances are the same: three orders above their rounding."""

SMOOTHING_SHARE: Final = 1e-6
"""Weiszfeld's smoothing, as a share of how far the selected rows lie from each other: what the result may be off by."""
MOST_STEPS: Final = 1000
CANCELLED: Final = 1e-7
"""The median is found, but for one last step, when the rows' pulls cancel to this share of the weight (rounding leaves
1e-8) ..."""
REFINEMENT: Final = 1e-5
"""Most that a coefficient moves in that last step."""
SETTLED: Final = 1e-12
"""... or when no coefficient moves by more. Steps cost W^3, not P, and four or five are usual; the cap is for rows that
lie on one line, where the Hessian is nothing."""
LEVEL: Final = 1e-8
"""Share of the largest curvature below which a direction has none, and no Newton step goes along it."""
HOLDS: Final = 1.0 - 1e-6
"""Share of a row's weight below which the others' pull must lie. Where they balance, as between two rows of the same
weight, every point between is a median, and the steps' own is the one that favours neither."""

CLIPPING_STEPS: Final = 3
"""Re-centrings after the median; the paper's figures use 1 to 3 from worse starts."""


def krum(gram_WW: Tensor, weights: Sequence[float]) -> Tensor:
    """The row with the smallest score (Blanchard et al. 2017, arXiv:1703.02757).

    score_i = sum of |x_i - x_j|^2 over the W - f - 1 rows j nearest to i, other than i; result x_i of the smallest.
    Tolerates f = `trimmed_count(W)`: what is chosen lies within sqrt(W - f - 1) honest diameters of an honest row,
    whatever f workers send; f + 1 allied ones may be chosen themselves. The paper counts one neighbour fewer and asks
    for W >= 2f + 3; with all W - f - 1 others an honest row has only honest neighbours, and W >= 2f + 1, so three rows,
    suffice (Allouah et al. 2023, arXiv:2302.01772, and byzfl). With three rows the nearest two always tie: their mean.

    Weights choose nothing (a heavy liar is as easily passed over as a light one); rows that tie are averaged by weight.
    It keeps one worker's noise where others average it away: prefer `multi_krum`. [W, W] -> [W]. Of rows 0, 1, 3, 1e30:

    >>> rows = torch.tensor([[0.0], [1.0], [3.0], [1e30]], dtype=torch.float64)
    >>> krum(rows @ rows.T, [1, 1, 1, 1]).tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    return _selected(gram_WW, weights, 1)


def multi_krum(gram_WW: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted mean of the W - f rows with the smallest scores (ibid.); scores as for `krum`.

    sum_i w_i x_i / sum_i w_i over those selected. Tolerates f = `trimmed_count(W)`: each selected row, liars among
    them, lies within sqrt(W - f - 1) honest diameters of an honest row. Breaks at f + 1, and badly: a cluster of liars
    that is tight enough is selected whole. Weights act among those selected alone.
    [W, W] -> [W]. Of rows 0, 1, 3, 1e30 the first three:

    >>> rows = torch.tensor([[0.0], [1.0], [3.0], [1e30]], dtype=torch.float64)
    >>> multi_krum(rows @ rows.T, [2, 1, 1, 1]).tolist()
    [0.5, 0.25, 0.25, 0.0]
    """
    return _selected(gram_WW, weights, len(weights) - trimmed_count(len(weights)))


def geometric_median(gram_WW: Tensor, weights: Sequence[float]) -> Tensor:
    """The point with the smallest weighted sum of distances, sum_i w_i |z - x_i|, by Weiszfeld's and Newton's steps.

    Weiszfeld's, smoothed: z <- sum_i b_i x_i / sum_i b_i with b_i = w_i / max(nu, |z - x_i|) (Pillutla et al. 2019,
    arXiv:1912.13445), begun at the Multi-Krum point; nu is `SMOOTHING_SHARE` of the largest distance between rows
    selected there, so that scale does not matter and no liar can widen it without bound. They slow down without end
    near a row, so a Newton step goes in their place where it halves the pull that is left, and two rows are tried
    themselves: first that with the smallest sum, since along a line of rows steps may settle far from it, then that
    nearest to z, as a row at 1e30 hides how sums differ. A row is the median where the others, each pulling with its
    weight, together pull less than it weighs (Vardi and Zhang 2000, https://doi.org/10.1073/pnas.97.4.1423).

    Tolerates liars with less than half of the weight (f = `trimmed_count(W)` under the weights that a run assigns):
    the result stays within 2 (W - f) / (W - 2f) honest radii of the honest mean at equal weights; breaks at half.
    Weights multiply distances. Where W - f rows are the same to the bit, they are the answer. [W, W] -> [W].

    >>> rows = torch.tensor([[0.0], [0.0], [1e30]], dtype=torch.float64)
    >>> geometric_median(rows @ rows.T, [1, 1, 1]).tolist()
    [0.5, 0.5, 0.0]
    """
    coefficients_W = multi_krum(gram_WW, weights)
    selected_W = coefficients_W > 0.0
    distances_WW = squared_distances(gram_WW).sqrt()
    spread = float(distances_WW[selected_W][:, selected_W].max())
    if spread == 0.0:
        return coefficients_W
    weights_W = torch.tensor(weights, dtype=torch.float64)
    here = _Pulls(gram_WW, weights_W, coefficients_W, SMOOTHING_SHARE * spread)
    at_row_W = _at_row(here, distances_WW @ weights_W)
    if at_row_W is not None:
        return at_row_W
    for _ in range(MOST_STEPS):
        at_row_W = _at_row(here, here.distances_W)
        if at_row_W is not None:
            return at_row_W
        ahead = here.at(_newton_step(here))
        if here.left <= CANCELLED:
            # one more step gives the last digits; a long one is not refinement but rounding where every point will do
            is_fine = float((ahead.coefficients_W - here.coefficients_W).abs().max()) <= REFINEMENT
            return (ahead if is_fine else here).coefficients_W
        moved_W = here.pulls_W / here.pulls_W.sum()
        if float((moved_W - here.coefficients_W).abs().max()) <= SETTLED:
            break
        here = ahead if ahead.left < 0.5 * here.left else here.at(moved_W)
    return here.coefficients_W


def centered_clipping(gram_about_start_WW: Tensor, weights: Sequence[float]) -> Tensor:
    """Clip what each row adds to a start, and move by its weighted mean (Karimireddy et al. 2021, arXiv:2012.10333).

    v <- v + sum_i w_i (x_i - v) min(1, tau / |x_i - v|) / sum_i w_i, `CLIPPING_STEPS` times. The start is the
    coordinate-wise (weighted) median of the rows, about which `gram_about_start_WW` is taken; tau is the (lower) median
    of the distances to it. The answer is what each row adds to the start: v = start + sum_i a_i (x_i - start).

    Tolerates f < W / 2, as the median does: the result is within `CLIPPING_STEPS` x tau of it, whatever is sent, and
    tau is no more than an honest row's distance; what f liars add to each step is their share of the weight times tau.
    Breaks where the median does: half of the rows, or of the weight where weights differ. [W, W] -> [W]. Of rows
    0, 1 and 1e30 the start is 1 and tau 1, so that one pulls as far as the other:

    >>> about_1 = torch.tensor([[-1.0], [0.0], [1e30]], dtype=torch.float64)
    >>> round(1 + float(centered_clipping(about_1 @ about_1.T, [1, 1, 1]) @ about_1), 6)
    1.0
    """
    weights_W = torch.tensor(weights, dtype=torch.float64)
    shares_W = weights_W / weights_W.sum()
    coefficients_W = torch.zeros_like(weights_W)
    distances_W = distances_to(gram_about_start_WW, coefficients_W)
    tau = float(distances_W.sort().values[(len(weights) - 1) // 2])
    for _ in range(CLIPPING_STEPS):
        distances_W = distances_to(gram_about_start_WW, coefficients_W)
        moves_W = shares_W * (tau / distances_W.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
        coefficients_W = (1.0 - moves_W.sum()) * coefficients_W + moves_W
    return coefficients_W


def places(values: Tensor, kept: int) -> Tensor:
    """How far each value along the last dimension is among the `kept` smallest: 1, 0, or a share where several tie.

    >>> places(torch.tensor([3.0, 1.0, 3.0, 9.0]), 2).tolist()
    [0.5, 1.0, 0.5, 0.0]
    """
    cut = values.sort(dim=-1).values[..., kept - 1 : kept]
    tied = (values - cut).abs() <= TIE_SHARE * cut
    below = (values < cut) & ~tied
    left = kept - below.sum(dim=-1, keepdim=True)
    return below + tied * (left / tied.sum(dim=-1, keepdim=True))


class _Pulls:
    """How the rows pull on the point z that `coefficients_W` make of them, each with its weight along its direction.

    Directions have unit length (less within `nearness`), so that a row at 1e30 costs the others no precision.
    """

    def __init__(self, gram_WW: Tensor, weights_W: Tensor, coefficients_W: Tensor, nearness: float) -> None:
        self.gram_WW, self.weights_W, self.coefficients_W, self.nearness = gram_WW, weights_W, coefficients_W, nearness
        products_W = gram_WW @ coefficients_W
        about_WW = gram_WW - products_W - products_W[:, None] + coefficients_W @ products_W
        self.distances_W = about_WW.diagonal().clamp(min=0.0).sqrt()
        self.reach_W = self.distances_W.clamp(min=nearness)
        self.pulls_W = weights_W / self.reach_W
        self.directions_WW = about_WW / self.reach_W / self.reach_W[:, None]
        """Inner products of the directions from z to the rows."""
        pull = float((weights_W @ self.directions_WW @ weights_W).clamp(min=0.0).sqrt())
        self.left = pull / float(weights_W.sum())
        """Length of all pulls together, as a share of the weight: 0 at a median that is not a row."""

    def at(self, coefficients_W: Tensor) -> _Pulls:
        """The same at another point."""
        return _Pulls(self.gram_WW, self.weights_W, coefficients_W, self.nearness)


def _newton_step(here: _Pulls) -> Tensor:
    """Coefficients of the point where the pulls would cancel if they changed linearly.

    The sum of distances has the Hessian B I - sum_i b_i u_i u_i' with B = sum_i b_i; its inverse, along the rows'
    directions u, takes W equations (Woodbury).
    """
    total, roots_W = here.pulls_W.sum(), here.pulls_W.sqrt()  # scaled by roots: the pull of a row at 1e30 is near 0
    inner_WW = torch.eye(len(roots_W), dtype=torch.float64) * total - here.directions_WW * roots_W * roots_W[:, None]
    wanted_W = roots_W * (here.directions_WW @ here.weights_W)
    answer_W: Tensor = roots_W * torch.linalg.lstsq(inner_WW, wanted_W, rcond=LEVEL, driver="gelsd").solution
    steps_W: Tensor = (here.weights_W + answer_W) / total / here.reach_W
    return (1.0 - steps_W.sum()) * here.coefficients_W + steps_W


def _at_row(here: _Pulls, costs_W: Tensor) -> Tensor | None:
    """Coefficients of the row that costs least, with those within reach of it, if that is the geometric median."""
    row_W = torch.zeros_like(here.weights_W)
    row_W[costs_W.argmin()] = 1.0
    at_row = here.at(row_W)  # the row itself, and its doubles, have no direction from there and pull nothing
    there_W = torch.where(at_row.distances_W <= here.nearness, here.weights_W, 0.0)
    pull, held = at_row.left * float(here.weights_W.sum()), float(there_W.sum())
    return there_W / held if pull < HOLDS * held else None


def _selected(gram_WW: Tensor, weights: Sequence[float], kept: int) -> Tensor:
    neighbours = len(weights) - trimmed_count(len(weights)) - 1
    nearest_first_WW = squared_distances(gram_WW).sort(dim=1).values  # each row is its own nearest, at 0
    scores_W = nearest_first_WW[:, 1 : neighbours + 1].sum(dim=1)
    selected_W = places(scores_W, kept) * torch.tensor(weights, dtype=torch.float64)
    return selected_W / selected_W.sum()
