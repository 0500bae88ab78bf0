"""Looks at what training takes, every few seconds, beside a worker that works.

Decides how often, and which part of the machine is asked: the one that trains. Touches the meter alone, in a thread of
its own, since a driver may take a second to answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from worker.agent import Agent
from worker.energy import CardCounter, Counter, EnergyMeter, ProcessorCounter
from worker.home import RunHome
from worker.machine.probe import Machine
from worker.rules.house import House
from worker.senses.card import NvidiaCard
from worker.states import State

LOOK_EVERY_S: Final = 2.0
_TRAINING: Final = {State.TRAINING, State.RESUMING}


def meter_of(machine: Machine, home: RunHome, house: House) -> EnergyMeter:
    """For what `machine` trains on."""

    def ruled_watts() -> float:
        return house.rules.energy.watts

    counter: Counter = ProcessorCounter(ruled_watts)
    if machine.gpu is not None:
        counter = CardCounter(NvidiaCard(machine.gpu, machine.gpu_uuid), machine.gpu, ruled_watts)
    return EnergyMeter(counter, home, time.monotonic)


class EnergyWatch:
    """One agent's."""

    def __init__(self, meter: EnergyMeter, agent: Agent) -> None:
        self.meter, self._agent = meter, agent

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            lease = self._agent.held_lease if self._agent.state in _TRAINING else None
            await asyncio.to_thread(self.meter.look, lease)
            await asyncio.sleep(LOOK_EVERY_S)
