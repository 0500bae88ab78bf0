"""One event being applied: the state, the run's draws, and the commands that follow.

Decides nothing. Holds always: a slow command that is emitted is also in the state's `pending`, and stays there until
its result arrives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.engine.commands import Command, SlowCommand
from coordinator.engine.draws import Draws
from coordinator.engine.state import EngineState
from protocol.ids import WorkerId


@dataclass(slots=True, kw_only=True)
class Turn:
    """Lives for one `handle`."""

    state: EngineState
    draws: Draws
    commands: list[Command] = field(default_factory=list)

    def emit(self, command: Command) -> None:
        """Have `command` carried out."""
        self.commands.append(command)
        if isinstance(command, SlowCommand):
            self.state.put_pending(command)

    def settle(self, command_id: str) -> None:
        """A slow command is done, or no longer wanted."""
        self.state.drop_pending(command_id)

    def hear(self, worker: WorkerId) -> None:
        """A journalled event came from this worker."""
        self.state.update_worker(worker, heard_at_s=self.state.now_s, present=True)
