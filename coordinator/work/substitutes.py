"""Blocks that the run's rule did not answer for, summed up and put in words.

Decides how they are told: one line for those that went the same way, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.engine.events import ColumnSpan, Substitute
from protocol.ids import TRUNK, BlockId


@dataclass(frozen=True, slots=True)
class BlockRule:
    """What answered for one block."""

    block: BlockId
    contributions: int
    in_force: str
    """The rule's name; empty: none, the block stays as it was."""
    error: str = ""
    """What the run's rule failed with."""


def summed_up(rule: str, blocks: Iterable[BlockRule]) -> tuple[Substitute, ...]:
    """Those that `rule` did not answer for, in groups that went the same way."""
    groups: dict[tuple[str, str], list[BlockRule]] = {}
    for one in blocks:
        if one.in_force != rule:
            groups.setdefault((one.in_force, one.error), []).append(one)
    return tuple(
        Substitute(
            rule=rule,
            in_force=in_force,
            fewest=min(one.contributions for one in members),
            most=max(one.contributions for one in members),
            trunk=any(one.block == TRUNK for one in members),
            columns=_spans(int(one.block.removeprefix("column.")) for one in members if one.block != TRUNK),
            error=error,
        )
        for (in_force, error), members in groups.items()
    )


def where(one: Substitute) -> str:
    """`the trunk and columns 0-7, 9`."""
    spans = [str(s.first) if s.first == s.last else f"{s.first}-{s.last}" for s in one.columns]
    single = len(one.columns) == 1 and one.columns[0].first == one.columns[0].last
    columns = [f"column{'' if single else 's'} {', '.join(spans)}"] if spans else []
    return " and ".join((["the trunk"] if one.trunk else []) + columns)


def told(one: Substitute) -> str:
    """What happened, what it means and what would mend it, in one sentence."""
    blocks, count = where(one), f"{one.fewest}" if one.fewest == one.most else f"{one.fewest} to {one.most}"
    came = f"{count} submission{'' if one.most == 1 else 's'}"
    if one.error and not one.in_force:
        return f"{blocks} stayed as before the round: no rule could combine {came} ({one.error})"
    if one.error:
        return f"{blocks}: {one.rule} failed on {came} ({one.error}), and {one.in_force} took its place"
    meaning = "a plain mean, which one wrong submission moves at will" if one.in_force == "mean" else one.in_force
    return (
        f"{blocks} had {came} each, too few for {one.rule}, and were made by {meaning}; "
        "more workers, or more replicas of each column, mend it"
    )


def _spans(columns: Iterable[int]) -> tuple[ColumnSpan, ...]:
    spans: list[ColumnSpan] = []
    for column in sorted(columns):
        if spans and spans[-1].last == column - 1:
            spans[-1] = ColumnSpan(first=spans[-1].first, last=column)
        else:
            spans.append(ColumnSpan(first=column, last=column))
    return tuple(spans)
