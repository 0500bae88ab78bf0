"""What must hold of settings that are changed while a run goes on, whoever dies in between.

Decides nothing about the run. Keeps, outside of every simulated process, which changes the operator was told of, and
what each round's leases and outer step are to be made with: what was durable before the round's first lease.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import NoReturn

from coordinator.engine.changes import with_setting
from coordinator.engine.commands import AggregateRound, Command, GrantLease
from coordinator.engine.config import EngineConfig
from coordinator.engine.events import Event, SettingChanged
from coordinator.engine.records import event_to_json
from coordinator.engine.schedules import learning_rate
from coordinator.engine.state import EngineState
from protocol.ids import LeaseId, RoundNumber
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.disk import Disk


class SettingsBook:
    """Every change of one simulated run."""

    def __init__(self, config: EngineConfig, disk: Disk) -> None:
        self._chosen = config
        self._disk = disk
        self._acknowledged: Counter[tuple[str, str]] = Counter()
        self._rounds: dict[RoundNumber, EngineConfig] = {}
        self._leases: set[LeaseId] = set()

    def acknowledge(self, event: SettingChanged) -> None:
        """The operator was told that the setting is changed."""
        self._acknowledged[event.key, event.value] += 1

    def check(self, state: EngineState) -> None:
        """Whatever was acknowledged is known, also to a process that has just read the journal."""
        missing = self._acknowledged - Counter((row.key, row.value) for row in state.setting_changes)
        if missing:
            _broken(f"the operator was told of changes that are not known: {dict(missing)}")

    def applied(self, event: Event) -> None:
        """`event` was handled."""
        if isinstance(event, SettingChanged):
            record = event_to_json(event)
            if all(kept != record for _, kept in self._disk.records):
                _broken(f"{event.key} was set to {event.value} before that was durable")
            self._chosen = with_setting(self._chosen, event.key, json.loads(event.value))

    def commanded(self, command: Command) -> None:
        """`command` follows from an event."""
        if isinstance(command, GrantLease) and command.lease.lease_id not in self._leases:
            lease = command.lease
            if lease.audits is not None:
                return  # it says what the lease that it audits says
            self._leases.add(lease.lease_id)
            wanted = learning_rate(self._rounds.setdefault(lease.round, self._chosen), lease.round)
            if lease.recipe.learning_rate != wanted:
                _broken(
                    f"lease {lease.lease_id} has rate {lease.recipe.learning_rate}, its round's settings give {wanted}"
                )
        elif isinstance(command, AggregateRound):
            config = self._rounds.get(command.round)
            if config is not None and command.outer_learning_rate != config.outer_learning_rate:
                _broken(
                    f"round {command.round} steps at {command.outer_learning_rate}, "
                    f"it was leased at {config.outer_learning_rate}"
                )


def _broken(what: str) -> NoReturn:
    raise InvariantBroken(what)
