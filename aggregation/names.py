"""Which rules there are, how they are spelt, and which one answers when workers are few.

Decides the grammar, and nothing about tensors (importing this loads no torch, so settings can check a name):

    RULE = BASE | PRE "+" BASE      PRE = nnm | bucketing      BASE = mean | median | trimmed_mean | krum | ...

Always: at most one pre-step; none before `mean`, which a pre-step would leave as easy to move as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from protocol.errors import LocalError

Base = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centered_clipping"]
PreStep = Literal["nnm", "bucketing"]

BASES: Final[tuple[Base, ...]] = get_args(Base)
PRE_STEPS: Final[tuple[PreStep, ...]] = get_args(PreStep)
ROBUST_BASES: Final = tuple(base for base in BASES if base != "mean")

LEAST_ROWS = 3
"""With two rows no value can be told from its only other: every rule is the mean then."""

BUCKET_SIZE = 2
"""Rows in one bucket: the smallest that mixes. A bucket with one liar in it is lost, so larger ones tolerate fewer."""


@dataclass(frozen=True, slots=True)
class RuleName:
    """A rule's name, taken apart; `str` puts it together again."""

    base: Base
    pre: PreStep | None = None

    def __str__(self) -> str:
        return self.base if self.pre is None else f"{self.pre}+{self.base}"


_BY_NAME: Final = {
    str(name): name
    for name in (*map(RuleName, BASES), *(RuleName(base, pre) for pre in PRE_STEPS for base in ROBUST_BASES))
}
RULES: Final[tuple[str, ...]] = tuple(_BY_NAME)
"""Every name that is a rule."""

EXPECTED: Final = f"{', '.join(BASES)}, or one of them but mean after {' or '.join(f'`{pre}+`' for pre in PRE_STEPS)}"
"""What a wrong name is answered with."""


def parse_rule(rule: str) -> RuleName:
    """Take a name apart; LocalError where it is invalid, since settings have been checked.

    >>> parse_rule("nnm+krum")
    RuleName(base='krum', pre='nnm')
    """
    name = _BY_NAME.get(rule)
    if name is None:
        raise LocalError(f"aggregation: expected a rule of {EXPECTED}; got {rule!r}")
    return name


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
