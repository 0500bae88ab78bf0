"""What a run will need and yield, reckoned before anybody has joined: for each class of GPU, if all workers had it.

Decides what is assumed where nobody said otherwise; each assumption is a field, told beside the figures. Nothing of it
is measured. A pure function of settings, layout and assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.engine.config import EngineConfig
from coordinator.run.lease_length import ASSUMED_FLOPS, AssumedLine, step_s, traffic_of
from coordinator.settings import RunSettings
from protocol.lease import trunk_part
from protocol.recipe import recipe_of

if TYPE_CHECKING:
    from moe.layout import Layout

DAY_S = 86_400.0
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClass:
    """What cards of one size are assumed to be."""

    memory_gib: int
    tflops: float
    """Sustained in training: about 40 % of what such cards have in bf16."""
    watts: float
    """Of the card while it trains, and the machine around it."""


CLASSES = (
    GpuClass(memory_gib=8, tflops=10.0, watts=200.0),
    GpuClass(memory_gib=12, tflops=15.0, watts=250.0),
    GpuClass(memory_gib=16, tflops=20.0, watts=300.0),
    GpuClass(memory_gib=24, tflops=ASSUMED_FLOPS / 1e12, watts=450.0),
    GpuClass(memory_gib=48, tflops=60.0, watts=450.0),
    GpuClass(memory_gib=80, tflops=250.0, watts=900.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What nobody can know before the start."""

    workers: int = 8
    hours_a_day: float = 24.0
    """That a worker's machine takes part."""
    line: str = "20/100"
    price_a_kwh: float = 0.30
    tflops: float | None = None
    """Of every class; None: each its own."""
    watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One class of GPU; all workers have it."""

    memory_gib: int
    columns: int
    """That one worker trains; 0: the model does not fit, and nothing else is known."""
    tflops: float
    watts: float
    up_bytes: int
    """A worker's, a round."""
    down_bytes: int
    first_bytes: int
    """Down, once: what a worker that has nothing fetches."""
    round_s: float
    rounds_a_day: float
    tokens_a_day: float
    """Of all workers."""
    kwh_a_day: float
    money_a_day: float
    days: float | None
    """Until the run's last round; None: it has none."""


def forecast(settings: RunSettings, config: EngineConfig, layout: Layout, assumed: Assumed) -> list[Forecast]:
    """A row for each class."""
    return [_of(one, settings, config, layout, assumed) for one in CLASSES]


def _of(gpu: GpuClass, settings: RunSettings, config: EngineConfig, layout: Layout, assumed: Assumed) -> Forecast:
    from moe.planner import ANY_HOST, Burden, Memory, planned

    load = Burden(
        layout=layout,
        recipe=recipe_of(config.inner),
        sequence_length=settings.sequence_length,
        compute_bytes=_BF16_BYTES,
        on_gpu=True,
        codec=config.codec,
    )
    found = planned(load, Memory(gpu.memory_gib << 30, ANY_HOST), (4, 1))
    tflops, watts = assumed.tflops or gpu.tflops, assumed.watts or gpu.watts
    if not found.fits:
        return Forecast(
            memory_gib=gpu.memory_gib, columns=0, tflops=tflops, watts=watts, up_bytes=0, down_bytes=0, first_bytes=0,
            round_s=0.0, rounds_a_day=0.0, tokens_a_day=0.0, kwh_a_day=0.0, money_a_day=0.0, days=None,
        )  # fmt: skip
    traffic = traffic_of(layout, config.codec, found.columns, config.down, trunk_part(load.recipe))
    tokens = config.inner.batch_sequences * settings.sequence_length
    computes_s = config.inner.inner_steps * step_s(layout, tokens) * ASSUMED_FLOPS / (tflops * 1e12)
    round_s = computes_s + traffic.transfer_s(AssumedLine.parse(assumed.line)) + config.gather_s
    rounds = 3600.0 * assumed.hours_a_day / round_s
    kwh = assumed.workers * watts * rounds * computes_s / 3.6e6
    return Forecast(
        memory_gib=gpu.memory_gib,
        columns=found.columns,
        tflops=tflops,
        watts=watts,
        up_bytes=traffic.up_bytes,
        down_bytes=traffic.down_bytes,
        first_bytes=traffic.whole_bytes,
        round_s=round_s,
        rounds_a_day=rounds,
        tokens_a_day=assumed.workers * rounds * config.inner.inner_steps * tokens,
        kwh_a_day=kwh,
        money_a_day=kwh * assumed.price_a_kwh,
        days=None if config.max_rounds is None else config.max_rounds / rounds,
    )
