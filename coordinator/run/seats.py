"""Where a machine's part in a run lies on its disk, who may follow it, and which witness it asks.

Decides the files: `seat.json` (coordinator/standby/seat.py), and in `secret/`, `standby.json` (the one standby link
that is good, and the key that redeemed it) and `witness.link`. Always: what is kept is durable before the call returns.
A run folder without `seat.json` leads, and has no follower. Touches these files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from coordinator.standby.seat import Mode, Seat, SeatRole
from protocol.errors import ConfigError, Unauthenticated
from protocol.joinlink import SCHEME, JoinLink
from protocol.private_files import read_private, write_private

SEAT_FILE = "seat.json"
WITNESS_FILE = "secret/witness.link"
FOLLOW_SCHEME = "barnraise-standby://"
WITNESS_SCHEME = "barnraise-witness://"
STANDBY_LIFE_S = 24 * 3600.0
"""Of a standby link that nobody has redeemed: whoever has it gets everything of the run, its secrets included."""
_NAME_BYTES = 6
_INVITE_BYTES = 24


def read_seat(root: Path) -> Seat | None:
    """The seat in a run folder; None where there is none. ConfigError where it is damaged."""
    try:
        found = json.loads((root / SEAT_FILE).read_bytes())
        return Seat(**{**found, "role": SeatRole(found["role"]), "mode": Mode(found["mode"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{root / SEAT_FILE} does not say whether this machine leads: put it back from a backup"
        ) from error


def keep_seat(root: Path, seat: Seat) -> None:
    """Replace the seat, durably."""
    write_private(root / SEAT_FILE, json.dumps(dataclasses.asdict(seat)).encode())


def new_name() -> str:
    """A name for a machine that nobody has yet."""
    return secrets.token_hex(_NAME_BYTES)


def seat_of_leader(root: Path) -> Seat:
    """The run folder's seat; a leader's, made now, where it had none."""
    seat = read_seat(root)
    if seat is None:
        seat = Seat(me=new_name())
        keep_seat(root, seat)
    return seat


def require_leads(root: Path) -> None:
    """ConfigError unless the run in this folder may be served."""
    seat = read_seat(root)
    if seat is None or seat.role is SeatRole.LEADS:
        return
    if seat.role is SeatRole.FOLLOWS:
        raise ConfigError(
            f"{root} follows another machine: promote it first, with `barnraise coordinator promote {root}`"
        )
    raise ConfigError(
        f"{root} is fenced: another machine leads this run since epoch {seat.epoch + 1}. Serve it there; to have a "
        "follower here again, give `barnraise coordinator follow` a new folder"
    )


# ---- who may follow -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The one standby link that is good."""

    invite_digest: str
    expires_at_s: float
    key: str = ""
    """Public key of the follower that redeemed it."""


def _admission_path(root: Path) -> Path:
    return root / "secret" / "standby.json"


def new_standby_invite(root: Path, now_s: float) -> str:
    """A fresh invite; whoever followed by an earlier one is admitted no more."""
    invite = secrets.token_urlsafe(_INVITE_BYTES)
    digest = hashlib.sha256(invite.encode()).hexdigest()
    admission = Admission(invite_digest=digest, expires_at_s=now_s + STANDBY_LIFE_S)
    write_private(_admission_path(root), json.dumps(dataclasses.asdict(admission)).encode())
    return invite


def admission_of(root: Path) -> Admission | None:
    """Who may follow; None: nobody."""
    try:
        return Admission(**json.loads(_admission_path(root).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_admission_path(root)} is damaged: make a new standby link") from error


def admit(root: Path, public_key: bytes, invite: str, now_s: float) -> None:
    """Let this key follow, or Unauthenticated: it has redeemed the link, or is the first to show its invite."""
    admission, key = admission_of(root), public_key.hex()
    if admission is not None and admission.key and hmac.compare_digest(admission.key, key):
        return
    digest = hashlib.sha256(invite.encode()).hexdigest()
    if admission is None or not hmac.compare_digest(digest, admission.invite_digest):
        raise Unauthenticated("this standby link is not good any more: ask the run's operator for another")
    if admission.key:
        raise Unauthenticated("another machine has redeemed this standby link: ask the run's operator for another")
    if now_s > admission.expires_at_s:
        raise Unauthenticated("this standby link has expired: ask the run's operator for another")
    bound = dataclasses.replace(admission, key=key)
    write_private(_admission_path(root), json.dumps(dataclasses.asdict(bound)).encode())


# ---- links ----------------------------------------------------------------------------------------------------------


def link_text(link: JoinLink, scheme: str) -> str:
    """A join link's parts under another scheme, so that nobody pastes the one for the other."""
    return scheme + str(link).removeprefix(SCHEME)


def parse_link(text: str, scheme: str) -> JoinLink:
    """What `link_text` gave."""
    link = text.strip()
    if not link.startswith(scheme):
        raise ConfigError(f"this is not such a link: it begins with {scheme}, and has to stand in quotes in a shell")
    return JoinLink.parse(SCHEME + link.removeprefix(scheme))


def _witness_path(root: Path) -> Path:
    return root / WITNESS_FILE


def witness_of(root: Path) -> JoinLink | None:
    """The witness that this run asks; None where it has none."""
    if not _witness_path(root).is_file():
        return None
    return parse_link(read_private(_witness_path(root)).decode("ascii", "replace"), WITNESS_SCHEME)


def keep_witness(root: Path, link: JoinLink) -> None:
    """Ask this one from the next start on."""
    write_private(_witness_path(root), link_text(link, WITNESS_SCHEME).encode("ascii"))
