"""What an operator may set about what workers download: how new versions, and columns that are not held, are encoded.

Nothing here decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.codecs import CODECS

LEAST_BITS = 1.0
"""A parameter, of a step to the next version: with fewer most coordinates are left out. With 64 of 4,096 a step, 17 %
of the way to an aim that stays are left after forty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownConfig:
    """How the model goes down the line. What is published in one way stays as it is; a change begins with the next."""

    codec: str = "int4"
    """What the step from one version of a block to the next is encoded in: a worker that has the one makes the other of
    it, and what is rounded away goes into the next step. `fp32`: whole blocks alone."""
    frozen_codec: str = "int4"
    """What columns that a worker does not hold are encoded in, of which it computes with exactly these values. `fp32`:
    they are the base version's own."""
    frozen_every: int = 6
    """Every so many versions these columns are encoded anew, in the mean over the run: more often while the learning
    rate is high, more seldom where it is low."""


WHOLE = DownConfig(codec="fp32", frozen_codec="fp32", frozen_every=1)
"""Nothing is encoded: every block of every version whole."""


def down_problems(config: DownConfig) -> Iterator[tuple[bool, str]]:
    """Whether each condition holds, and what to say where it does not."""
    for name in ("codec", "frozen_codec"):
        codec = getattr(config, name)
        yield codec in CODECS, f"down.{name} must be one of {', '.join(CODECS)}, got {codec!r}"
    steps, frozen = CODECS.get(config.codec), CODECS.get(config.frozen_codec)
    yield (
        steps is None or steps.bits_per_parameter >= LEAST_BITS,
        f"down.codec must write every value, got {config.codec!r}: what it leaves out, workers would train without for "
        "as many rounds",
    )
    stateless = ", ".join(codec.name for codec in CODECS.values() if not codec.has_state)
    yield (
        frozen is None or not frozen.has_state,
        f"down.frozen_codec must be one of {stateless}, got {config.frozen_codec!r}: nothing makes up for its errors",
    )
    every = config.frozen_every
    yield 1 <= every <= 1000, f"down.frozen_every must be 1 to 1000 versions, got {every}"
