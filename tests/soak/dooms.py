"""Where a coordinator is killed: a moment of the journal or of a file, an event kind, and the how-manieth time.

The process kills itself with SIGKILL, so nothing of it runs afterwards: no handler, no flush, no `finally`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coordinator.store.journal import Moment

EVENT_MOMENTS = (Moment.INSERTED, Moment.COMMITTED, Moment.APPLYING, Moment.APPLIED)
EVENT_KINDS = (
    "CoordinatorResumed", "WorkerEnrolled", "CapabilityChanged", "LeaseRequested", "LeaseReturned",
    "SubmissionCommitted", "SubmissionUploaded", "SubmissionMeasured", "RoundAggregated", "VersionValidated",
    "CheckpointWritten", "CommandFailed", "WorkerSilent", "Ticked",
)  # fmt: skip
"""All that are journalled, but for RunCreated (there before anything is served) and RunStopped (nothing follows)."""
FILE_MOMENTS = ("blob written", "blob in place", "version written", "version in place", "payload dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doom:
    """One planned death."""

    moment: str
    kind: str = ""
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.moment} {self.kind}".strip()


def all_dooms() -> list[Doom]:
    """Every kind of journal position once, and every moment of a file."""
    dooms = [Doom(moment=moment, kind=kind) for kind in EVENT_KINDS for moment in EVENT_MOMENTS]
    dooms += [Doom(moment=Moment.CUTTING), Doom(moment=Moment.CUT)]
    return dooms + [Doom(moment=moment) for moment in FILE_MOMENTS]


class Executioner:
    """Counts moments, keeps the ledger of what was committed, and ends the process when its time has come."""

    def __init__(self, doom: Doom, ledger: Path) -> None:
        self._doom = doom
        self._left = doom.nth
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def arm(self, doom: Doom) -> None:
        """From now on its time is another one."""
        self._doom, self._left = doom, doom.nth

    def observe(self, moment: Moment, records: Sequence[str]) -> None:
        """The journal observer that the server is given."""
        if moment is Moment.COMMITTED:
            os.write(self._ledger, "".join(f"{record}\n" for record in records).encode())
        for kind in [json.loads(record)["type"] for record in records] or [""]:
            self.reach(moment, kind)

    def reach(self, moment: str, kind: str = "") -> None:
        """A moment has come; perhaps the last one."""
        if (self._doom.moment, self._doom.kind) == (moment, kind):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def coordinator_life(folder: Path, ledger: Path, doom: Doom, pipe: Connection) -> None:
    """Serve the run in `folder` until death. Says when it listens."""
    import torch

    from coordinator.edge.server import CoordinatorServer
    from coordinator.run.folder import RunFolder
    from coordinator.run.pump_limits import PumpLimits

    torch.set_num_threads(1)
    executioner = Executioner(doom, ledger)
    watch_files(executioner)
    if doom.kind == "CommandFailed":
        fail_once()

    async def serve() -> None:
        limits = PumpLimits(snapshot_every=11)
        server = CoordinatorServer(RunFolder.open(folder), journal_observer=executioner.observe, pump_limits=limits)
        await server.start()
        pipe.send("listening")
        await asyncio.Event().wait()

    asyncio.run(serve())


def watch_files(executioner: Executioner) -> None:
    """Moments of the artifact store and of the index of versions, before and after each becomes visible."""
    from coordinator.store.artifacts import ArtifactStore, ContentStore
    from coordinator.store.versions import Versions

    adopt, publish, drop = ContentStore._adopt, Versions.publish, ArtifactStore.drop_payload

    def watched_adopt(self: Any, file: Path, target: Path) -> None:
        executioner.reach("blob written")
        adopt(self, file, target)
        executioner.reach("blob in place")

    def watched_publish(self: Any, *arguments: Any) -> Any:
        executioner.reach("version written")
        digest = publish(self, *arguments)
        executioner.reach("version in place")
        return digest

    def watched_drop(self: Any, *arguments: Any) -> None:
        drop(self, *arguments)
        executioner.reach("payload dropped")

    ContentStore._adopt = watched_adopt  # type: ignore[method-assign]
    Versions.publish = watched_publish  # type: ignore[method-assign, assignment]
    ArtifactStore.drop_payload = watched_drop  # type: ignore[method-assign, assignment]


def fail_once() -> None:
    from coordinator.work.executor import Executor

    method, failed = vars(Executor)["execute"], False  # taken as an attribute it would dispatch on the executor

    def failing(self: Any, command: Any) -> Any:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError(28, "No space left on device")
        return method.__get__(self, Executor)(command)

    Executor.execute = failing  # type: ignore[method-assign,assignment]
