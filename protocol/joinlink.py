"""The join link: everything a volunteer needs to join a run, in one line that can be pasted.

`barnraise://HOST:PORT/#FINGERPRINT.INVITE`: the address, the SHA-256 of the coordinator's CA certificate, and a
single-use invite. Both secrets stand behind the `#`, which no browser or proxy sends on. A run with several addresses
has them all in its links, and one that is found over the peer-to-peer network the nodes through which that is entered:
`barnraise://HOST:PORT,HOST:PORT/?through=PEER@HOST:PORT,PEER@HOST:PORT#FINGERPRINT.INVITE`. Parsed by hand:
`urllib.parse` drops line breaks and tabs in silence, and what was checked must be what is used. Touches nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import ConfigError
from protocol.hosts import address_text, checked_port, dial_target, dialable_host, split_port

SCHEME = "barnraise://"
_MAX_CHARACTERS = 2048
MOST_ADDRESSES = 4
MOST_BOOTSTRAPS = 4
_SHAPE = "barnraise://HOST:PORT/#FINGERPRINT.INVITE"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT_START = re.compile(r"([0-9a-f]{8,64})?")
_THROUGH = "?through="
_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,64}")
_INVITE = re.compile(r"[A-Za-z0-9_-]{16,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """A node of the peer-to-peer network, through which it is entered. It is believed nothing."""

    peer_id: str
    """What libp2p calls it: a hash of its key, base58."""
    host: str
    port: int

    def __post_init__(self) -> None:
        if not _PEER_ID.fullmatch(self.peer_id):
            raise ConfigError(f"a peer's id has 40 to 64 letters and digits (base58), got {self.peer_id[:80]!r}")
        object.__setattr__(self, "host", dialable_host(self.host))
        checked_port(self.port)

    @classmethod
    def parse(cls, text: str) -> Bootstrap:
        """`PEER@HOST:PORT`; ConfigError says what is wrong."""
        peer_id, found, address = text.partition("@")
        if not found:
            raise ConfigError(f"a peer is written as PEER@HOST:PORT, got {text[:80]!r}")
        return cls(peer_id=peer_id, **_host_and_port(address))

    def __str__(self) -> str:
        return f"{self.peer_id}@{address_text(self.host, self.port)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinLink:
    """A join link in its parts, each already checked. The invite is kept out of `repr`, so out of logs.

    Without an invite it is the way back to a run that this machine is enrolled in.
    """

    host: str
    port: int
    fingerprint: str
    invite: str | None = field(default=None, repr=False)
    others: tuple[tuple[str, int], ...] = ()
    """Further hosts and ports at which the run may be."""
    through: tuple[Bootstrap, ...] = ()

    def __post_init__(self) -> None:
        try:
            host = dialable_host(self.host)
            checked_port(self.port)
            others = tuple((dialable_host(one), checked_port(port)) for one, port in self.others)
        except ConfigError as error:
            raise ConfigError(f"join link: {error}") from error
        object.__setattr__(self, "host", host)  # frozen, and still what was checked is what is dialled
        object.__setattr__(self, "others", others)
        if len(others) >= MOST_ADDRESSES or len(self.through) > MOST_BOOTSTRAPS:
            raise ConfigError(
                f"join link: at most {MOST_ADDRESSES} addresses and {MOST_BOOTSTRAPS} peers stand in one,"
                f" got {len(others) + 1} and {len(self.through)}"
            )
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise ConfigError(
                f"join link: the fingerprint must be 64 hexadecimal digits, got {len(self.fingerprint)} characters"
                f"{'' if len(self.fingerprint) != 64 else ', not all of them hexadecimal'}"
            )
        if self.invite is not None and not _INVITE.fullmatch(self.invite):
            raise ConfigError(
                "join link: the invite must be 16 to 128 letters, digits, - and _,"
                f" got {len(self.invite)} characters: was the link cut off?"
            )

    @classmethod
    def parse(cls, text: str) -> JoinLink:
        """The link in `text`, blanks around it ignored; ConfigError says which part is wrong and what a link is."""
        link = text.strip()
        if len(link) > _MAX_CHARACTERS:
            raise ConfigError(f"join link: {len(link)} characters are too many; a link looks like {_SHAPE}")
        if not link.isascii() or not link.isprintable() or " " in link:
            raise ConfigError("join link: it has blanks, control or non-ASCII characters in it; paste it as one line")
        if not link.lower().startswith(SCHEME):
            raise ConfigError(f"join link: it must start with {SCHEME}; a link looks like {_SHAPE}")
        address, found, secrets = link[len(SCHEME) :].partition("#")
        if not found:
            raise ConfigError(f"join link: nothing follows a # (quote the link in a shell); it looks like {_SHAPE}")
        fingerprint, found, invite = secrets.partition(".")
        if not found:
            raise ConfigError(f"join link: no . between fingerprint and invite; a link looks like {_SHAPE}")
        address, _, through = address.partition(_THROUGH)
        (host, port), *others = map(_split_address, address.removesuffix("/").split(",", MOST_ADDRESSES))
        peers = through.split(",", MOST_BOOTSTRAPS) if through else ()
        return cls(
            host=host,
            port=port,
            fingerprint=fingerprint.lower(),
            invite=invite,
            others=tuple(others),
            through=tuple(_bootstrap(peer) for peer in peers),
        )

    @property
    def address(self) -> str:
        """`HOST:PORT`, IPv6 in brackets."""
        return address_text(self.host, self.port)

    @property
    def target(self) -> str:
        """What a gRPC channel to the coordinator is made for."""
        return dial_target(self.host, self.port)

    def __str__(self) -> str:
        invite = "" if self.invite is None else f".{self.invite}"
        addresses = ",".join([self.address, *(address_text(*other) for other in self.others)])
        through = _THROUGH + ",".join(map(str, self.through)) if self.through else ""
        return f"{SCHEME}{addresses}/{through}#{self.fingerprint}{invite}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """Where a run is that this machine is enrolled in: no secret."""

    host: str
    port: int
    fingerprint: str
    """First digits of the run's fingerprint, enough to choose by; empty: not said."""

    @classmethod
    def parse(cls, text: str) -> WayBack | None:
        """`HOST:PORT`, `barnraise://HOST:PORT` or either with `#FINGERPRINT`; None where `text` is something else."""
        address, _, fingerprint = text.strip().partition("#")
        if address.lower().startswith(SCHEME):
            address = address[len(SCHEME) :]
        if len(text) > _MAX_CHARACTERS or not _FINGERPRINT_START.fullmatch(fingerprint.lower()):
            return None
        try:
            host, port = _split_address(address.removesuffix("/"))
            host = dialable_host(host)
        except ConfigError:
            return None
        return cls(host=host, port=port, fingerprint=fingerprint.lower())


def _bootstrap(text: str) -> Bootstrap:
    try:
        return Bootstrap.parse(text)
    except ConfigError as error:
        raise ConfigError(f"join link: {error}") from error


def _host_and_port(address: str) -> dict[str, Any]:
    host, port = split_port(address)
    if port is None:
        raise ConfigError(f"{address[:80]!r} has no port")
    return {"host": host, "port": port}


def _split_address(address: str) -> tuple[str, int]:
    try:
        host, port = split_port(address)
    except ConfigError as error:
        raise ConfigError(f"join link: {error}") from error
    if port is not None:
        return host, port
    if ":" in host and not host.startswith("["):
        before, _, after = host[:80].rpartition(":")
        raise ConfigError(f"join link: an IPv6 address stands in brackets, as in [{before}]:{after}")
    raise ConfigError(f"join link: {address[:80]!r} has no port; a link looks like {_SHAPE}")
