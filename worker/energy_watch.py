"""Looks at what training takes, every few seconds, beside a worker that works.

Decides how often, and which part of the machine is asked: the one that trains. Touches the meter alone, beside the
event loop, since a driver may take a second to answer, or for ever: nobody waits for that in order to leave.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from worker.agent import Agent
from worker.energy import CardCounter, EnergyMeter, ProcessorCounter
from worker.home import RunHome
from worker.ports import Background
from worker.rules.house import House
from worker.senses.card import NvidiaCard
from worker.states import State

LOOK_EVERY_S: Final = 2.0
TRAINING: Final = {State.TRAINING, State.RESUMING}


def meter_of(home: RunHome, house: House) -> EnergyMeter:
    """For what this machine trains on, once that is known."""
    return EnergyMeter(_WhatTrains(house), home, time.monotonic)


class _WhatTrains:
    """The processor, until the house has learnt of a GPU; a `Counter`."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._processor = ProcessorCounter(self._ruled_watts)
        self._card: CardCounter | None = None

    @property
    def part(self) -> str:
        """Which of them."""
        return self._counter.part

    def joules(self) -> float:
        """As it counts."""
        return self._counter.joules()

    def assumed_watts(self) -> float:
        """As it says."""
        return self._counter.assumed_watts()

    def celsius(self) -> float:
        """As it says."""
        return self._counter.celsius()

    @property
    def _counter(self) -> CardCounter | ProcessorCounter:
        gpu = self._house.gpu
        if gpu is None:
            return self._processor
        if self._card is None:
            self._card = CardCounter(NvidiaCard(gpu, self._house.gpu_uuid), gpu, self._ruled_watts)
        return self._card

    def _ruled_watts(self) -> float:
        return self._house.rules.energy.watts


class EnergyWatch:
    """One agent's."""

    def __init__(self, meter: EnergyMeter, agent: Agent, background: Background) -> None:
        self.meter, self._agent, self._background = meter, agent, background

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            lease = self._agent.held_lease if self._agent.state in TRAINING else None
            await self._background.run(self.meter.look, lease)
            await asyncio.sleep(LOOK_EVERY_S)
