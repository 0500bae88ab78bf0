"""How long a run's leases are, so that machines compute and lines do not hold them up: what `init` works out.

Decides the recipe's inner steps, where nobody chose them: as many as compute thirty times as long as the lease's bytes
take on the assumed line (`line`, 20 Mbit/s up and 100 down), at the assumed 25 TFLOP/s; fewer where that is more than
was ever measured or the data hold, with a sentence that says so. And what deadlines give for a download of the whole
model; and how long leases are, in words, while a run goes on. Pure functions of settings, layout, data and state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from coordinator.beginning import merged
from coordinator.engine.busy import busy
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.down_config import DownConfig
from coordinator.engine.state import EngineState
from coordinator.settings import RunSettings
from protocol.ids import TRUNK, BlockId, RunId, column_block
from protocol.lease import ALL_OF_TRUNK, TrunkPart, blocks_of, trunk_part
from protocol.recipe import Recipe
from protocol.text import human_bytes

if TYPE_CHECKING:
    from moe.layout import Layout

RATIO = 30.0
"""A lease computes so many times as long as it transfers: 97 % of a round in which the two follow each other, of which
95 % are left where machines differ by 2 % (benchmarks.utilisation). The least that is not told as too little is
`LEAST_RATIO`."""
LEAST_RATIO = 10.0
ASSUMED_FLOPS = 25e12
"""Sustained, of a volunteer's card: about 40 % of what a 24 GB consumer card has in bf16."""
ASSUMED_MEMORY_BYTES = 24 << 30
FEWEST_COLUMNS = 8
"""Held by the assumed volunteer where a machine of that memory would hold fewer by today's ladder, or none."""
MOST_STEPS = 500
"""Local SGD was shown to lose little up to so many (DiLoCo, arXiv:2311.08105); nobody measured more here."""
LEASES_IN_DATA = 32
"""A lease names at most this share of the training sequences, or an epoch would be a few workers' round."""
SLOWER = 10.0
"""Before anybody was measured, a lease has time for a machine so many times slower than the assumed one."""
UNNOTICED_S = 2.0
"""Transfers that take less are nobody's trouble: small models keep the recipe's steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBytes:
    """Bytes of one lease, headers and digests left out."""

    up_bytes: int
    down_bytes: int
    """A round, where the worker has the version before."""
    whole_bytes: int
    """Where it has nothing."""

    def transfer_s(self, line: AssumedLine) -> float:
        """Seconds up and down, one after the other, as a round without overlap has them."""
        return 8e-6 * (self.up_bytes / line.up_mbit_s + self.down_bytes / line.down_mbit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssumedLine:
    """A volunteer's connection."""

    up_mbit_s: float
    down_mbit_s: float

    @classmethod
    def parse(cls, text: str) -> AssumedLine:
        """`UP/DOWN`, as `RunSettings.line` has it."""
        up, _, down = text.partition("/")
        return cls(up_mbit_s=float(up), down_mbit_s=float(down))


def assumed_columns(layout: Layout) -> int:
    """Columns that the assumed volunteer trains."""
    from moe.planner import held_bytes

    fitting = [n for n in range(1, layout.columns + 1) if held_bytes(layout, n) <= ASSUMED_MEMORY_BYTES]
    return max([min(FEWEST_COLUMNS, layout.columns), layout.min_columns, *fitting])


def traffic_of(
    layout: Layout, codec: str, columns: int, down: DownConfig, trunk: TrunkPart = ALL_OF_TRUNK
) -> LeaseBytes:
    """Of a lease of so many columns: of these and the trunk a step, of the others their share of being encoded anew. A
    frozen trunk is fetched once."""
    from moe.layout import block_tensor_specs, submission_specs
    from protocol.codecs import FP32, codec_named
    from protocol.tensor_headers import payload_size

    def bytes_of(blocks: Iterable[BlockId], name: str) -> int:
        return sum(payload_size(block_tensor_specs(layout, block), codec_named(name)) for block in blocks)

    held = blocks_of(tuple(range(columns)))
    moving = blocks_of(tuple(range(columns)), trunk)
    others = [block for block in layout.needed_blocks(range(columns)) if block not in held]
    published = down.frozen_codec == FP32.name  # then the others come as the held do
    every, frozen = (1, down.codec) if published else (down.frozen_every, down.frozen_codec)
    return LeaseBytes(
        up_bytes=payload_size(submission_specs(layout, range(columns), trunk), codec_named(codec)),
        down_bytes=bytes_of(moving, down.codec) + bytes_of(others, frozen) // every,
        whole_bytes=bytes_of(held, FP32.name) + bytes_of(others, down.frozen_codec),
    )


def _trunk_of(settings: RunSettings) -> TrunkPart:
    """What leases train of it: fixed when the run begins."""
    chosen = settings.engine.get("inner", {})
    named = {name: chosen[name] for name in ("trunk", "lora_rank") if name in chosen}
    return trunk_part(replace(Recipe(), **named))


def active_parameters(layout: Layout) -> int:
    """Parameters that a token meets: the trunk's, and those of `top_k` experts a layer."""
    trunk, column = layout.block_bytes(TRUNK) // 4, layout.block_bytes(column_block(0)) // 4
    return trunk + layout.top_k * column


def step_s(layout: Layout, tokens: int) -> float:
    """Seconds an inner step of so many tokens takes the assumed card: 6 operations a parameter and token."""
    return 6.0 * active_parameters(layout) * tokens / ASSUMED_FLOPS


def worked_out(settings: RunSettings, layout: Layout, train_sequences: int, note: Callable[[str], None]) -> RunSettings:
    """`settings` with long enough leases, and with deadlines for them; `note` gets what an operator should know."""
    line, recipe = AssumedLine.parse(settings.line), InnerRecipe()
    down = DownConfig(**settings.engine.get("down", {}))
    traffic = traffic_of(layout, settings.codec, assumed_columns(layout), down, _trunk_of(settings))
    transfer_s = traffic.transfer_s(line)
    if transfer_s < UNNOTICED_S:
        return settings
    inner = settings.engine.get("inner", {})
    batch = int(inner.get("batch_sequences", recipe.batch_sequences))
    one_s = step_s(layout, batch * settings.sequence_length)
    wanted = math.ceil(RATIO * transfer_s / one_s)
    most = max(recipe.inner_steps, min(MOST_STEPS, train_sequences // (LEASES_IN_DATA * batch)))
    steps = int(inner.get("inner_steps", min(most, max(wanted, recipe.inner_steps))))
    note(_told(settings, traffic, transfer_s, steps, wanted, one_s, chosen="inner_steps" in inner))
    deadlines = _deadlines(traffic.whole_bytes * 8e-6 / line.down_mbit_s, steps * one_s)
    engine = merged({**deadlines, "inner": {"inner_steps": steps}}, settings.engine)
    return settings.model_copy(update={"engine": engine})


def _deadlines(fetch_s: float, lease_s: float) -> dict[str, float]:
    """Room for a first download of the whole model, and for machines some times slower than the assumed one."""
    usual = EngineConfig(run_id=RunId("run"), columns=1, train_sequences=1)
    lease_ttl_s = max(usual.lease_ttl_s, float(math.ceil(SLOWER * lease_s + fetch_s)))
    deadline_s = max(usual.round_deadline_s, usual.round_deadline_s / usual.lease_ttl_s * lease_ttl_s)
    return {"fetch_s": float(math.ceil(fetch_s)), "lease_ttl_s": lease_ttl_s, "round_deadline_s": deadline_s}


class LeaseLengths:
    """Says how long a run's leases are, and why: one for each running coordinator."""

    def __init__(self, settings: RunSettings, layout: Layout) -> None:
        self._settings, self._layout = settings, layout
        self._line = AssumedLine.parse(settings.line)
        columns = assumed_columns(layout)
        trunk = _trunk_of(settings)
        self._traffic = lru_cache(maxsize=1)(lambda down: traffic_of(layout, settings.codec, columns, down, trunk))

    def told(self, state: EngineState) -> str:
        """What is planned, and what was seen of it. Looks at every worker."""
        planned, measured = self.planned(state.config), busy(state)
        if measured is None:
            return planned
        return (
            f"{planned}. In the latest rounds ({measured.round_s:.0f} s each) the median worker trained "
            f"{measured.share:.0%} of the time"
        )

    def planned(self, config: EngineConfig) -> str:
        """Inner steps of a lease, and what they compute against what they transfer."""
        inner, traffic = config.inner, self._traffic(config.down)
        transfer_s = traffic.transfer_s(self._line)
        computes_s = inner.inner_steps * step_s(self._layout, inner.batch_sequences * self._settings.sequence_length)
        steps = f"{inner.inner_steps} inner steps of {inner.batch_sequences} sequences a lease"
        if inner.final_inner_steps is not None:
            steps += f", {inner.final_inner_steps} in the last round"
        if transfer_s < UNNOTICED_S:
            why = f"as many as the recipe has, since a lease's bytes take under {UNNOTICED_S:g} s"
        else:
            why = _compared(computes_s, transfer_s, traffic, self._settings.line)
        return f"{steps}: {why}"


def _compared(computes_s: float, transfer_s: float, traffic: LeaseBytes, line: str) -> str:
    moved = f"{human_bytes(traffic.up_bytes)} up and {human_bytes(traffic.down_bytes)} down"
    return (
        f"about {computes_s:.0f} s of computing at 25 TFLOP/s, {computes_s / transfer_s:.1f} times the "
        f"{transfer_s:.0f} s that {moved} take at {line} Mbit/s"
    )


def _told(
    settings: RunSettings,
    traffic: LeaseBytes,
    transfer_s: float,
    steps: int,
    wanted: int,
    one_s: float,
    *,
    chosen: bool,
) -> str:
    computes_s = steps * one_s
    moved = f"{human_bytes(traffic.up_bytes)} up and {human_bytes(traffic.down_bytes)} down"
    what = (
        f"a lease of {steps} inner steps computes for about {computes_s:.0f} s (at 25 TFLOP/s) and transfers for "
        f"{transfer_s:.0f} s: {moved} at {settings.line} Mbit/s"
    )
    if computes_s >= LEAST_RATIO * transfer_s:
        return what
    why = "you chose the steps" if chosen else f"{MOST_STEPS} steps are the most, and the data have to last"
    return (
        f"{what}. Workers will wait for their lines: {RATIO:.0f} times as long would take {wanted} steps, and {why}; "
        "longer sequences, a larger --batch or a codec of fewer bits shorten the wait"
    )
