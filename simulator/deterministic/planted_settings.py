"""A bug planted on purpose in how settings are changed; see `simulator/deterministic/planted.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from coordinator.engine.events import SettingChanged
from coordinator.engine.records import event_to_json
from coordinator.run.pump import Pump
from protocol.errors import StorageTrouble
from simulator.deterministic.planted import PlantedBug, _replaced


def _set_before_durable() -> AbstractContextManager[None]:
    async def commit(pump: Any, batch: Sequence[Any]) -> None:
        records = {id(queued): event_to_json(queued.event) for queued in batch}
        hasty = [queued for queued in batch if isinstance(queued.event, SettingChanged)]
        for queued in hasty:
            pump._apply(queued, records[id(queued)])
        append = pump._journal.append
        try:
            await asyncio.get_running_loop().run_in_executor(pump._writer, append, list(records.values()))
        except StorageTrouble as error:
            pump._stall(batch, error)
            return
        for queued in batch:
            if queued not in hasty:
                pump._apply(queued, records[id(queued)])

    return _replaced(Pump, "_commit", commit)


SET_BEFORE_DURABLE = PlantedBug(
    name="set-before-durable",
    what="`set` is applied and answered before its event is durable",
    plant=_set_before_durable,
)
