"""What an agent has done in the trainer's process beside leases: the probe, the handiwork, others' losses.

Decides nothing: each order is a function of worker/handiwork.py, or of the probe, with its arguments. Touches files of
the run's folder that the process reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
from pydantic import TypeAdapter

from moe.layout import Layout
from protocol.errors import LocalError
from protocol.lease import TrunkPart
from worker.allowance import DiskCap
from worker.apart import orders as o
from worker.apart.keeper import ProcessKeeper
from worker.apart.ruled import Ruled
from worker.blocks import BlockCache
from worker.disk import private_folder
from worker.fetched import FetchedItem, Run
from worker.handiwork import Handiwork, ShardOffer
from worker.lease import RunDescription
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.steps import Way


class DistantHands:
    """A `Measurer` too. Each function blocks whoever calls it."""

    def __init__(
        self,
        keeper: ProcessKeeper,
        options: WorkerOptions,
        *,
        ruled: Ruled,
    ) -> None:
        self._keeper, self._options, self._ruled = keeper, options, ruled
        self._machine: Machine | None = None

    def probe(self) -> Machine:
        """What this machine is."""
        options = self._options
        found = self._keeper.ask(
            lambda number: o.Probe(
                number=number,
                device=options.device,
                memory_bytes=options.memory_bytes,
                threads=options.threads or self._ruled.threads() or None,
                ruled={kind: self._ruled.memory_bytes(kind) for kind in ("cpu", "cuda")},
                others_bytes=int(psutil.Process().memory_info().rss),
            )
        )
        self._machine = _as(Machine, found)
        return self._machine

    @property
    def machine(self) -> Machine:
        """What the probe found."""
        if self._machine is None:
            raise LocalError("nothing is computed before the machine is known")
        return self._machine

    @property
    def handiwork(self) -> Handiwork:
        """Done there."""
        return Handiwork(
            understand=self._understand,
            plan=self._plan,
            measure_speed=self._measure_speed,
            take_steps=self._take_steps,
            submission_bytes=self._submission_bytes,
        )

    def measure(self, item: FetchedItem) -> tuple[list[float], list[float]]:
        """Losses before and after, as `LossMeasurer` measures them."""
        folder, name = private_folder(self._keeper.folder), self._keeper.next_number()
        payload, sequences = folder / f"payload-{name}", folder / f"sequences-{name}.npy"
        try:
            payload.write_bytes(item.payload)
            np.save(sequences, item.sequences, allow_pickle=False)
            found = self._keeper.ask(
                lambda number: o.MeasureLosses(
                    number=number,
                    description=item.run.description,
                    machine=self.machine,
                    item_id=item.item_id,
                    columns=item.columns,
                    codec=item.codec,
                    digests=item.digests,
                    parts=item.parts,
                    trunk=item.trunk,
                    payload=str(payload),
                    sequences=str(sequences),
                )
            )
        finally:
            payload.unlink(missing_ok=True)
            sequences.unlink(missing_ok=True)
        before, after = _as(tuple[list[float], list[float]], found)
        return before, after

    def _understand(self, description: RunDescription) -> Run:
        found = self._keeper.ask(lambda number: o.Understand(number=number, description=description))
        return Run(description=description, layout=_as(Layout, found))

    def _plan(self, run: Run, machine: Machine, most_columns: int | None, cap: DiskCap) -> ShardOffer:
        found = self._keeper.ask(
            lambda number: o.PlanShard(
                number=number, description=run.description, machine=machine, most_columns=most_columns, cap=cap
            )
        )
        return _as(ShardOffer, found)  # type: ignore[no-any-return]

    def _measure_speed(self, run: Run, machine: Machine, columns: int) -> float:
        found = self._keeper.ask(
            lambda number: o.MeasureSpeed(number=number, description=run.description, machine=machine, columns=columns)
        )
        return float(found)

    def _take_steps(self, way: Way, run: Run, cache: BlockCache) -> None:
        self._keeper.ask(lambda number: o.TakeSteps(number=number, description=run.description, way=way))
        cache.learn(way.ref.digest)

    def _submission_bytes(self, run: Run, columns: tuple[int, ...], trunk: TrunkPart, codec: str) -> int:
        found = self._keeper.ask(
            lambda number: o.SizeSubmission(
                number=number, description=run.description, columns=columns, trunk=trunk, codec=codec
            )
        )
        return int(found)


def _as(kind: Any, found: Any) -> Any:
    return TypeAdapter(kind).validate_python(found)
