"""What is done at once about the engine's quick commands: whom they are for hears of them.

Decides nothing.
"""

from __future__ import annotations

import asyncio
from functools import partial

from coordinator.edge.mailboxes import Mailboxes
from coordinator.edge.sessions import SessionTable
from coordinator.engine.commands import (
    AnnounceVerdict,
    CancelLease,
    Command,
    DropPayload,
    EndRun,
    GrantLease,
    OpenResiduals,
    ShutOut,
)
from coordinator.run.opened import OpenedRun
from protocol.errors import LocalError


def dispatched(mailboxes: Mailboxes, sessions: SessionTable, parts: OpenedRun, command: Command) -> None:
    """Carry out one command."""
    match command:
        case GrantLease(lease=lease):
            mailboxes.of(lease.worker).deliver(lease)
        case CancelLease():
            pass  # the worker hears it at its next heartbeat, from the engine's state
        case ShutOut(worker=worker):
            sessions.close_of(worker)  # its next call opens another, which is refused with the reason
        case AnnounceVerdict():
            mailboxes.of(command.worker).verdicts.append(command)
        case OpenResiduals(worker=worker):
            mailboxes.of(worker).asked.set()
        case DropPayload(digest=digest):
            # a gigabyte's unlink takes a quarter of a second, in which nobody would be answered
            parts.store.drop_payload(digest, partial(asyncio.get_running_loop().run_in_executor, None))
        case EndRun():
            mailboxes.ended.set()
        case _:
            raise LocalError(f"the server does not know what to do with {type(command).__name__}")
