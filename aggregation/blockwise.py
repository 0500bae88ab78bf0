"""One block's contributions become one pseudo-gradient: scale to common steps, clip the norm, apply the rule.

Decides the order: a contribution is first multiplied by its `step_scale` (to the round's common number of inner
steps), then clipped as a whole block to `max_norm_l2`, then handed to the rule, which sees the block as one vector
(distances are between blocks, not tensors). Both factors are applied chunk by chunk inside the rule, so no scaled copy
of a contribution exists. Contributions of weight 0 are checked against the schema but have no say.

Holds always: whatever finite values were sent, no rule raises, and the result is finite. A largest norm of 0 (the
median is 0 where most holders did not move the block) leaves nothing of anybody's: all count as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from aggregation.norms import block_norm, clip_scale
from aggregation.pieces import Piece, Scaled
from aggregation.rules import aggregate_pieces
from protocol.errors import LocalError

LARGEST_NORM_L2 = 1e37
"""No contribution enters longer than this, whatever is allowed: sums of so long rows stay far inside fp32 (3.4e38)."""

SMALLEST_SCALE = 1e-30
"""Below this a factor loses digits in fp32, down to all of them at 1e-45: such a row is scaled beforehand, in fp64."""


@dataclass(frozen=True, slots=True)
class BlockContribution:
    """One worker's pseudo-gradient of one block, in memory or where it lies, and what the coordinator made of it."""

    tensors: Mapping[str, Piece]
    weight: float
    step_scale: float = 1.0
    max_norm_l2: float = math.inf
    norm_l2: float | None = None
    """Of `tensors`, where it is known: it takes a pass over them."""


def aggregate_block(
    contributions: Sequence[BlockContribution], rule: str, *, seed: int | None = None
) -> dict[str, Tensor]:
    """The block's aggregated pseudo-gradient, names and shapes as contributed; `seed` is the secret behind bucketing.

    LocalError where contributions differ in names or shapes, hold a non-finite value, or all weigh nothing: screening
    should have stopped each of these earlier.
    """
    if not contributions:
        raise LocalError("aggregation: a block without contributions stays as it is and is not aggregated")
    for index, contribution in enumerate(contributions):
        _check_schema(index, contributions[0].tensors, contribution)
    counted = [contribution for contribution in contributions if contribution.weight > 0.0]
    if not counted:
        raise LocalError(f"aggregation: all {len(contributions)} contributions have weight 0")
    weights = [contribution.weight for contribution in counted]
    names = list(counted[0].tensors)
    scales = [scale_of(contribution) for contribution in counted]
    rows: list[list[Piece]] = [[contribution.tensors[name] for name in names] for contribution in counted]
    for index, scale in enumerate(scales):
        if 0.0 < scale < SMALLEST_SCALE:
            scales[index], rows[index] = 1.0, [Scaled(piece, scale) for piece in rows[index]]
    # a norm is finite exactly when every entry is, and those have been asked for just now
    made = aggregate_pieces(rows, weights, rule, scales=scales, seed=seed, finite=True)
    return dict(zip(names, made, strict=True))


def scale_of(contribution: BlockContribution) -> float:
    """What the contribution is multiplied by: to common steps, and down to its largest allowed norm, which may be 0."""
    if not 0.0 < contribution.step_scale < math.inf or not contribution.max_norm_l2 >= 0.0:
        raise LocalError(
            f"aggregation: expected a step scale above 0 and a largest norm of 0 or more, "
            f"got {contribution.step_scale} and {contribution.max_norm_l2}"
        )
    norm_l2 = block_norm(contribution.tensors) if contribution.norm_l2 is None else contribution.norm_l2
    norm_l2 *= contribution.step_scale
    if not math.isfinite(norm_l2):
        raise LocalError("aggregation: a contribution with a value that is not finite has passed screening")
    return contribution.step_scale * clip_scale(norm_l2, min(contribution.max_norm_l2, LARGEST_NORM_L2))


def _check_schema(index: int, expected: Mapping[str, Piece], contribution: BlockContribution) -> None:
    if not 0.0 <= contribution.weight < math.inf:
        raise LocalError(f"aggregation: contribution {index}: expected a finite weight, got {contribution.weight}")
    if contribution.tensors.keys() != expected.keys():
        odd = sorted(contribution.tensors.keys() ^ expected.keys())
        raise LocalError(f"aggregation: contribution {index} differs from the first in names: {', '.join(odd[:4])}")
    for name, tensor in contribution.tensors.items():
        if tuple(tensor.shape) != tuple(expected[name].shape):
            raise LocalError(
                f"aggregation: contribution {index}, {name!r}: expected shape {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
