"""`barnraise worker appeal` as a function: the volunteer holds a refusal to be wrong, and asks for an audit.

Decides which of the machine's workers asks, a GPU each: the one whose lease it was, by their logs. The coordinator says
what becomes of it. Works beside a worker that is running, since the call is
signed by that worker's key alone and opens no session. Reads the home folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError, Refused, RemoteError, Unauthenticated
from protocol.text import printable
from worker.rejoin import ENROLMENT_FILE, home_root
from worker.siblings import home_of, places_of
from worker.standing import log_lines

if TYPE_CHECKING:
    from worker.belongings import RunPlace
    from worker.home import RunHome

MAX_REASON_CHARACTERS = 400
MOST_LINES = 1 << 20
"""Of a log, which is of two parts of 1 MiB: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appeal:
    """What the coordinator answered."""

    gpu: str
    """Of the worker that asked, as in cuda:1; empty: the machine's first."""
    taken: bool
    reason: str


async def appeal(lease_id: str, *, run: str, home: Path | None) -> Appeal:
    """Ask once; `run` as for `join`, `lease_id` empty for the latest that was refused. ConfigError, RemoteError."""
    from worker.home import open_home

    root = home_root(home)
    places = [one for one in places_of(run, home) if (one.folder / ENROLMENT_FILE).exists()]
    if not places:
        raise ConfigError("this machine is not enrolled in that run, so nothing of it was refused there")
    answer: Appeal | None = None
    trouble: Exception | None = None
    for place in _whose(lease_id, places):
        try:
            said = await _asked(lease_id, place, open_home(home_of(root, place.gpu), place.link.fingerprint))
        except (ConfigError, Refused, Unauthenticated) as error:  # of one key, which may be another one's luck
            trouble = trouble or error
            continue
        if said.taken:
            return said
        answer = answer or said
    if answer is None and trouble is not None:
        raise trouble
    assert answer is not None
    return answer


async def _asked(lease_id: str, place: RunPlace, home: RunHome) -> Appeal:
    from worker.client import CoordinatorClient
    from worker.sentences import in_words

    enrolment = home.enrolment()
    if enrolment is None:
        raise ConfigError("this machine is not enrolled in that run, so nothing of it was refused there")
    client = CoordinatorClient(place.link, home.identity())
    client.connect(enrolment.ca_pem.encode())
    try:
        reply = await client.ask_audit(lease_id)
    except RemoteError as error:
        raise in_words(error, place.link.address) from None
    finally:
        await client.close()
    return Appeal(gpu=place.gpu, taken=reply.taken, reason=printable(reply.reason[:MAX_REASON_CHARACTERS]))


def _whose(lease_id: str, places: list[RunPlace]) -> list[RunPlace]:
    """Whose lease it was, by the workers' logs; all of them, to be asked in turn, where no log has it any more."""
    heard = [(at_s, place) for place in places if (at_s := _heard_at_s(lease_id, place)) is not None]
    return [max(heard, key=lambda one: one[0])[1]] if heard else places


def _heard_at_s(lease_id: str, place: RunPlace) -> float | None:
    """When the worker there heard of the lease last, or of the latest that was refused."""
    field, wanted = ("lease", lease_id) if lease_id else ("event", "submission_rejected")
    times = [one["at_s"] for one in log_lines(place.folder, MOST_LINES) if one.get(field) == wanted]
    return max((float(at_s) for at_s in times if isinstance(at_s, int | float)), default=None)
