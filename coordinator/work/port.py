"""Where slow commands are carried out: today by one thread of the coordinator, tomorrow also by trusted workers.

Decides nothing. Always: what comes of a command follows from the command and from the blobs that it names by their
digests, so anybody who has those can do it, and doing it twice is harmless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from coordinator.engine.commands import SlowCommand
from coordinator.engine.events import Event

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from protocol.lease import Lease
    from protocol.submission import Blocks


class Work(Protocol):
    """Measures, replays, aggregates, validates, exports. Called by one thread at a time."""

    def execute(self, command: SlowCommand) -> Event:
        """Carry out `command`; the event that it ends in. Whatever it raises, nothing has happened, and it may be
        asked for again (`failures.trouble_of` says whose fault it was).
        """


class Replay(Protocol):
    """How a lease is computed again. The coordinator knows no training: whoever starts it brings this along."""

    def __call__(
        self, lease: Lease, base: Blocks, sequences_NL: NDArray[np.int64], micro_batch: int, wanted: str, /
    ) -> tuple[Blocks, str]:
        """The pseudo-gradient of `lease`, fp32, from the blocks of its base version and its N sequences of L tokens;
        and the arithmetic class in which it was computed.

        `micro_batch` is how many its worker put through the model at a time; 0 where it did not say. `wanted` is the
        class in which it computed, as it says: to compute in that, too, where this machine can.
        """
