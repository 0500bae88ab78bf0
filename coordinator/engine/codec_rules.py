"""Which codecs go with which rules: the combinations that a run may not begin with, each with its reason.

Decides them from names alone. What cannot reach its goal (`LIMITED`) is refused by `init`, a start and `set`, with
these words. What could, and was measured to miss it (`MISSED`), is refused by `init` alone, unless somebody says that
the cost is accepted: another model or longer rounds may do better, and an experiment has to be able to show it. Touches
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """The only rules that a codec goes with."""

    rules: tuple[str, ...]
    why: str


LIMITED: Mapping[str, Limited] = {
    "top_k": Limited(
        rules=("mean", "multi_krum"),
        why="senders choose its coordinates, and of most coordinates most of them send nothing: what looks at each "
        "coordinate by itself finds 0 there",
    ),
}
"""By codec; every other one goes with every rule."""

MISSED: Mapping[str, str] = {
    "top_k": "it cost 25 % of the held-out loss in forty rounds of four steps, where 2 % is the goal "
    "(docs/performance.md)",
}
"""By codec, whatever the rule: what it was measured to cost."""


def combination_problems(codec: str, rule: str) -> Iterator[tuple[bool, str]]:
    """As `check_config` wants them: whether it holds, and what to say where it does not."""
    limited = LIMITED.get(codec)
    if limited is not None:
        words = f"codec {codec} does not go with rule {rule}: {limited.why}; use {' or '.join(limited.rules)}"
        yield rule in limited.rules, words


def cost_of(codec: str) -> str | None:
    """What a run that begins with this codec was measured to pay beyond its goal; None where it meets it."""
    return MISSED.get(codec)
