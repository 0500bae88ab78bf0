"""What a worker does that needs a model, tensors or the device, beside training and measuring: each as one function.

Decides nothing: an agent calls them without knowing where they run. `HERE` is in this process, and loads torch with the
first call; `worker.apart.trainer` has the same in a process of their own. All are pure but for the files that they
name, so any of them can be begun again. Called beside the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe.layout import submission_specs
from protocol.codecs import codec_named
from protocol.lease import TrunkPart, trunk_part
from protocol.tensor_headers import payload_size
from worker.allowance import DiskCap
from worker.blocks import BlockCache
from worker.fetched import Run, understand_run
from worker.lease import RunDescription
from worker.machine.machine import Machine
from worker.steps import Way, take_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOffer:
    """How many columns a machine can hold, and why not more."""

    columns: int
    by_memory: int
    """Before the disk was asked."""
    reason: str
    measures: bool
    """Whether the whole model fits, too, as measuring losses wants it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handiwork:
    """The functions."""

    understand: Callable[[RunDescription], Run]
    """The run's layout; MalformedMessage or ConfigError where it makes no sense."""
    plan: Callable[[Run, Machine, int | None, DiskCap], ShardOffer]
    """What the machine can hold, of at most so many columns; ConfigError where that is nothing."""
    measure_speed: Callable[[Run, Machine, int], float]
    """Tokens a second with so many columns."""
    take_steps: Callable[[Way, Run, BlockCache], None]
    """Make a block of the steps that have come; MalformedMessage or DigestMismatch where it comes to another one."""
    submission_bytes: Callable[[Run, tuple[int, ...], TrunkPart, str], int]
    """Of a submission of these columns and this part of the trunk, in this codec."""


def plan_here(run: Run, machine: Machine, most_columns: int | None, cap: DiskCap) -> ShardOffer:
    """See `Handiwork.plan`."""
    from worker.machine.probe import columns_that_fit, holds_whole

    told = run.description
    fitting = columns_that_fit(run.layout, machine, told.sequence_length, most_columns, told.recipe, told.codec)
    wanted = min(fitting.columns, most_columns or fitting.columns)
    part = trunk_part(told.recipe)
    columns = cap.columns_that_fit(run.layout, told.codec, wanted, told.frozen_codec, part)
    measures = holds_whole(run.layout, machine)
    return ShardOffer(columns=columns, by_memory=wanted, reason=fitting.reason, measures=measures)


def measure_speed_here(run: Run, machine: Machine, columns: int) -> float:
    """See `Handiwork.measure_speed`."""
    from worker.machine.probe import measure_speed

    return measure_speed(run.layout, machine, columns, run.description.sequence_length)


def submission_bytes_here(run: Run, columns: tuple[int, ...], trunk: TrunkPart, codec: str) -> int:
    """See `Handiwork.submission_bytes`."""
    return payload_size(submission_specs(run.layout, columns, trunk), codec_named(codec))


HERE = Handiwork(
    understand=understand_run,
    plan=plan_here,
    measure_speed=measure_speed_here,
    take_steps=lambda way, run, cache: take_steps(way, run.layout, cache),
    submission_bytes=submission_bytes_here,
)
