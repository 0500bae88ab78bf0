"""Which codecs go with which rules and audits: the combinations that a run may not begin with, each with its reason.

Decides them from names alone. A combination is entered here when it was measured to miss its goal, or cannot reach it;
`init`, a start and `set` refuse it with these words. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from protocol.codecs import CODECS


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


def combination_problems(codec: str, rule: str, *, budget: float, open_run: bool) -> Iterator[tuple[bool, str]]:
    """As `check_config` wants them: whether it holds, and what to say where it does not."""
    limited = LIMITED.get(codec)
    if limited is not None:
        words = f"codec {codec} does not go with rule {rule}: {limited.why}; use {' or '.join(limited.rules)}"
        yield rule in limited.rules, words
    known = CODECS.get(codec)
    if known is not None and known.has_state:
        can_be = ", ".join(name for name, one in CODECS.items() if not one.has_state)
        words = (
            f"codec {codec} keeps what an encoding loses with the worker, and audits do not open that yet: what was "
            f"sent cannot be held against a lease computed again; use one of {can_be}"
        )
        yield not open_run, f"an open run is audited, and {words}"
        yield budget <= 0.0, f"{words}, or audits.budget = 0"
