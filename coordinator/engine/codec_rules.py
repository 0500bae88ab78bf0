"""Which codecs go with which rules: the combinations that a run may not begin with, each with its reason.

Decides them from names alone. A combination is entered here when it was measured to miss its goal, or cannot reach it;
`init`, a start and `set` refuse it with these words. Touches nothing.
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


def combination_problems(codec: str, rule: str) -> Iterator[tuple[bool, str]]:
    """As `check_config` wants them: whether it holds, and what to say where it does not."""
    limited = LIMITED.get(codec)
    if limited is not None:
        words = f"codec {codec} does not go with rule {rule}: {limited.why}; use {' or '.join(limited.rules)}"
        yield rule in limited.rules, words
