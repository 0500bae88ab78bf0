"""Which rules there are, how they are spelt, and which one answers when workers are few.

Decides the grammar, and nothing about tensors (importing this loads no torch, so settings can check a name):

    RULE = BASE | PRE "+" BASE      PRE = nnm | bucketing      BASE = a row of the table `BASES`

A new rule is a row there; `tests/aggregation/test_contract.py` holds every rule to what rules promise.

Always: at most one pre-step; none before `mean`, which a pre-step would leave as easy to move as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal, get_args

from protocol.errors import LocalError


class Sees(Enum):
    """What a rule is a function of; with it goes what its function is like (W rows, their weights, C columns)."""

    SUM = auto()
    """All rows at once, liars included: (weights, scales) -> ChunkReducer. No pre-step comes before it."""
    COORDINATES = auto()
    """Each coordinate by itself: weights -> ChunkReducer, a reduction of [W, C] to [C]."""
    DISTANCES = auto()
    """Rows as vectors: (gram [W, W], weights) -> coefficients [W] of the rows in the result, 0 or more, of sum 1."""
    DISTANCES_FROM_MEDIAN = auto()
    """Likewise, about the median; what the coefficients lack to a sum of 1 is the median's own share."""


@dataclass(frozen=True, slots=True)
class Base:
    """One row."""

    sees: Sees
    function: str
    """`MODULE:NAME`, by name since a module of tensors loads torch."""


BASES: Final[dict[str, Base]] = {
    "mean": Base(Sees.SUM, "aggregation.reducers:weighted_mean"),
    "median": Base(Sees.COORDINATES, "aggregation.reducers:any_median"),
    "trimmed_mean": Base(Sees.COORDINATES, "aggregation.reducers:any_trimmed_mean"),
    "krum": Base(Sees.DISTANCES, "aggregation.geometry:krum"),
    "multi_krum": Base(Sees.DISTANCES, "aggregation.geometry:multi_krum"),
    "geometric_median": Base(Sees.DISTANCES, "aggregation.geometry:geometric_median"),
    "centered_clipping": Base(Sees.DISTANCES_FROM_MEDIAN, "aggregation.geometry:centered_clipping"),
}
PreStep = Literal["nnm", "bucketing"]

PRE_STEPS: Final[tuple[PreStep, ...]] = get_args(PreStep)
ROBUST_BASES: Final = tuple(name for name, base in BASES.items() if base.sees is not Sees.SUM)

LEAST_ROWS = 3
"""With two rows no value can be told from its only other: every rule is the mean then."""

BUCKET_SIZE = 2
"""Rows in one bucket: the smallest that mixes. A bucket with one liar in it is lost, so larger ones tolerate fewer."""


@dataclass(frozen=True, slots=True)
class RuleName:
    """A rule's name, taken apart; `str` puts it together again."""

    base: str
    pre: PreStep | None = None

    def __str__(self) -> str:
        return self.base if self.pre is None else f"{self.pre}+{self.base}"


RULES: Final[tuple[str, ...]] = (*BASES, *(f"{pre}+{base}" for pre in PRE_STEPS for base in ROBUST_BASES))
"""Every name that is a rule."""

EXPECTED: Final = f"{', '.join(BASES)}, or one of them but mean after {' or '.join(f'`{pre}+`' for pre in PRE_STEPS)}"
"""What a wrong name is answered with."""


def parse_rule(rule: str) -> RuleName:
    """Take a name apart; LocalError where it is invalid, since settings have been checked.

    >>> parse_rule("nnm+krum")
    RuleName(base='krum', pre='nnm')
    """
    before, plus, name = rule.rpartition("+")
    base, pre = BASES.get(name), next((pre for pre in PRE_STEPS if pre == before), None)
    if base is None or (plus and (pre is None or base.sees is Sees.SUM)):
        raise LocalError(f"aggregation: expected a rule of {EXPECTED}; got {rule!r}")
    return RuleName(name, pre)


def rule_in_force(rule: str, rows: int) -> RuleName:
    """The rule that really answers over so many rows of one block.

    Under three rows it is the mean. Bucketing is left out where under three buckets would be left, so that few rows
    are not made fewer. Every other rule stands from three rows on, with f = `trimmed_count(rows)` liars tolerated.

    >>> [str(rule_in_force("bucketing+krum", rows)) for rows in (2, 4, 5)]
    ['mean', 'krum', 'bucketing+krum']
    """
    name = parse_rule(rule)
    if rows < LEAST_ROWS:
        return RuleName("mean")
    if name.pre == "bucketing" and bucket_count(rows) < LEAST_ROWS:
        return RuleName(name.base)
    return name


def bucket_count(rows: int) -> int:
    """How many buckets `rows` rows fill, the last of which may be short.

    >>> bucket_count(5)
    3
    """
    return -(-rows // BUCKET_SIZE)
