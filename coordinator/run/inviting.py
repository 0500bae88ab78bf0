"""Join links: what an invite becomes so that it can be sent to somebody, and how it is taken back.

Decides how many are made at a time, how long they live, and which addresses stand in them. Used by a running
coordinator, and for a run that nobody serves: such a link works once it is served again. Touches the registry
and, of a stopped run, the journal.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from coordinator.engine.events import InviteRevoked, InvitesMade
from coordinator.run.folder import RunFolder
from coordinator.run.reaching import last_port
from coordinator.run.standings import digest_of_invite
from coordinator.run.stopped_run import stopped_run
from coordinator.settings import RunSettings
from coordinator.store.invites import InviteRow
from coordinator.store.registry import DEFAULT_INVITE_LIFE_S, Registry, clean_name
from protocol.errors import ConfigError, MalformedMessage
from protocol.joinlink import MOST_ADDRESSES, MOST_BOOTSTRAPS, Bootstrap, JoinLink
from protocol.local_place import own_name

MAX_INVITES = 1000
"""In one call: as many join links as fit into a control message, with room to spare."""
MAX_USES = 10_000
"""Of one link: a run's workers are counted in tens of thousands at most."""
MAX_INVITE_LIFE_S = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteTerms:
    """What is asked for: `count` links, each for `uses` machines of `owner` (empty: each machine is its own)."""

    count: int = 1
    trusted: bool = False
    """Founders: full weight from the start, and may audit."""
    life_s: float = DEFAULT_INVITE_LIFE_S
    owner: str = ""
    uses: int = 1

    @classmethod
    def checked(cls, *, count: int, trusted: bool, life_s: float, owner: str, uses: int) -> InviteTerms:
        """Terms that somebody asked for, 0 for what they left open; MalformedMessage says which is out of bounds."""
        count, life_s, uses = count or 1, life_s or DEFAULT_INVITE_LIFE_S, uses or 1
        if not 1 <= uses <= MAX_USES:
            raise MalformedMessage(f"a link is for at most {MAX_USES} machines, asked for {uses}")
        if trusted and uses > 1:
            raise MalformedMessage("founders have a link each: a trusted one is for one machine")
        if not 1 <= count <= MAX_INVITES:
            raise MalformedMessage(f"at most {MAX_INVITES} invites are made at a time, asked for {count}")
        if not math.isfinite(life_s) or not 0 < life_s <= MAX_INVITE_LIFE_S:
            most_h = MAX_INVITE_LIFE_S / 3600.0
            raise MalformedMessage(f"an invite lives above 0 and up to {most_h:g} hours, asked for {life_s / 3600.0:g}")
        return cls(count=count, trusted=trusted, life_s=life_s, owner=clean_name(owner) if owner else "", uses=uses)


def make_links(
    terms: InviteTerms,
    *,
    settings: RunSettings,
    fingerprint: str,
    registry: Registry,
    port: int,
    now_s: float,
    through: tuple[Bootstrap, ...] = (),
) -> list[str]:
    """Join links with fresh invites, for a coordinator that listens on `port`. `now_s` is wall time; `through`: nodes
    of the run's peer-to-peer network."""
    (host, dialled_port), *others = settings.join_addresses(port)[:MOST_ADDRESSES]
    expires_at_s = now_s + terms.life_s
    return [
        str(
            JoinLink(
                host=host,
                port=dialled_port,
                fingerprint=fingerprint,
                others=tuple(others),
                through=through[:MOST_BOOTSTRAPS],
                invite=registry.create_invite(
                    trusted=terms.trusted, expires_at_s=expires_at_s, owner=terms.owner, uses=terms.uses
                ),
            )
        )
        for _ in range(terms.count)
    ]


def invites_of(folder: RunFolder) -> list[InviteRow]:
    """What there is of each invite, served or not."""
    registry = folder.registry()
    try:
        return registry.invites.rows(time.time())
    finally:
        registry.close()


def revoke_while_stopped(folder: RunFolder, invite: str) -> tuple[str, bool]:
    """Take an invite back in a run that nobody serves at present: its digest, and whether that changed anything."""
    digest = digest_of_invite(invite)
    with stopped_run(folder) as run:
        registry = folder.registry()
        try:
            changed = registry.invites.revoke(digest)
        finally:
            registry.close()
        if changed:
            run.record(InviteRevoked(at_s=run.now_s, actor=own_name(), invite=digest))
    return digest, changed


def make_links_while_stopped(folder: RunFolder, terms: InviteTerms) -> list[str]:
    """Join links of a run that nobody serves at present; ConfigError when somebody does, or no port is known yet."""
    with stopped_run(folder) as run:
        settings = folder.settings()
        port = settings.port or last_port(folder)
        if not port:
            raise ConfigError(
                f"{folder.root} takes a free port at its first start, which has not been yet: start it with "
                f"`barnraise coordinator run {folder.root}`, then invite"
            )
        registry = folder.registry()
        try:
            links = make_links(
                terms,
                settings=settings,
                fingerprint=folder.authority().fingerprint,
                registry=registry,
                port=port,
                now_s=time.time(),
            )
        finally:
            registry.close()
        run.record(made(terms, run.now_s, own_name()))
        return links


def made(terms: InviteTerms, at_s: float, actor: str) -> InvitesMade:
    """The event of it."""
    return InvitesMade(at_s=at_s, actor=actor, count=terms.count, uses=terms.uses, trusted=terms.trusted)
