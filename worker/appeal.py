"""`barnraise worker appeal` as a function: the volunteer holds a refusal to be wrong, and asks for an audit.

Decides nothing: the coordinator says what becomes of it. Works beside a worker that is running, since the call is
signed by the machine's key alone and opens no session. Reads the home folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError
from protocol.text import printable
from worker.rejoin import home_root, link_of

if TYPE_CHECKING:
    from worker.home import RunHome

MAX_REASON_CHARACTERS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Appeal:
    """What the coordinator answered."""

    taken: bool
    reason: str


async def appeal(lease_id: str, *, run: str, home: Path | None) -> Appeal:
    """Ask once; `run` as for `join`, `lease_id` empty for the latest that was refused. ConfigError, RemoteError."""
    from worker.client import CoordinatorClient
    from worker.home import open_home

    link = link_of(run, home_root(home))
    place: RunHome = open_home(home, link.fingerprint)
    enrolment = place.enrolment()
    if enrolment is None:
        raise ConfigError("this machine is not enrolled in that run, so nothing of it was refused there")
    client = CoordinatorClient(link, place.identity())
    client.connect(enrolment.ca_pem.encode())
    try:
        reply = await client.ask_audit(lease_id)
    finally:
        await client.close()
    return Appeal(taken=reply.taken, reason=printable(reply.reason[:MAX_REASON_CHARACTERS]))
