"""What each order of the agent comes to, but for training: computed here, where torch is.

Decides nothing. The functions are those that an agent calls in its own process where it has no other
(worker/handiwork.py). A run is understood once, and the model that measures losses is kept from one item to the next.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch

from worker.apart import orders as o
from worker.blocks import BlockCache
from worker.fetched import FetchedItem, Run, understand_run
from worker.handiwork import HERE
from worker.lease import RunDescription
from worker.machine.probe import hold_to_cap, probe_machine
from worker.train.measuring import LossMeasurer

BLOCKS = "blocks"
"""As worker/home.py names it."""

Asked = o.Probe | o.Understand | o.PlanShard | o.MeasureSpeed | o.TakeSteps | o.SizeSubmission | o.MeasureLosses


def answer(order: Asked, folder: Path) -> Any:
    """What the order asked for. Raises whatever the function raises."""
    match order:
        case o.Probe():
            machine = probe_machine(
                order.device,
                order.memory_bytes,
                order.threads,
                others_bytes=order.others_bytes,
                ruled=order.ruled.get,
            )
            torch.set_num_threads(machine.threads)
            return machine
        case o.Understand():
            return run_of(order.description).layout
        case o.PlanShard():
            return HERE.plan(run_of(order.description), order.machine, order.most_columns, order.cap)
        case o.MeasureSpeed():
            hold_to_cap(order.machine)
            return HERE.measure_speed(run_of(order.description), order.machine, order.columns)
        case o.TakeSteps():
            HERE.take_steps(order.way, run_of(order.description), BlockCache(folder / BLOCKS))
            return None
        case o.SizeSubmission():
            return HERE.submission_bytes(run_of(order.description), order.columns, order.trunk, order.codec)
        case o.MeasureLosses():
            hold_to_cap(order.machine)
            return _measurer(folder, order.machine.device).measure(_item_of(order))
    assert_never(order)


@functools.lru_cache(maxsize=4)
def run_of(description: RunDescription) -> Run:
    """As `understand_run`, once."""
    return understand_run(description)


def end_measuring(folder: Path, device: str) -> None:
    """Keep no model for it until the next item comes."""
    _measurer(folder, device).let_go()


@functools.lru_cache(maxsize=1)
def _measurer(folder: Path, device: str) -> LossMeasurer:
    return LossMeasurer(BlockCache(folder / BLOCKS), device)


def _item_of(order: o.MeasureLosses) -> FetchedItem:
    return FetchedItem(
        item_id=order.item_id,
        run=run_of(order.description),
        columns=order.columns,
        codec=order.codec,
        digests=order.digests,
        payload=Path(order.payload).read_bytes(),
        sequences=np.load(order.sequences, allow_pickle=False),
        parts=order.parts,
        trunk=order.trunk,
    )
