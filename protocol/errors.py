"""The error tree: who is to blame, and what to do about it.

    BarnraiseError
    ├── RemoteError            the other side sent something wrong
    │   ├── MalformedMessage   bytes that do not decode, or decode to something that was not asked for
    │   ├── DigestMismatch     content that is not what its digest promised
    │   ├── Unauthenticated    a signature, session, counter or invite that does not hold
    │   ├── Refused            the other side understood and said no
    │   └── Unavailable        no connection, a deadline passed, or the other side is overloaded: try again
    │       ├── RateLimited    asked more often, or for more at once, than one caller may
    │       └── TooSlow        bytes came or were taken too slowly to go on waiting
    ├── ConfigError            a setting, path or file that the person at the keyboard can correct
    │   └── StorageTrouble     the disk is full, read-only or failing: nothing was half done, and going on works later
    └── LocalError             a broken promise inside this program: our bug
        └── IllegalEvent       an event that the present state does not allow

Messages name who, which round, which shard, what was expected and what came; they are for diagnosis. An error that a
volunteer may have to read about carries a `Cause`, by which the sentence is chosen.
"""

from __future__ import annotations

from protocol.causes import Cause


class BarnraiseError(Exception):
    """Base of every error that this project raises on purpose."""

    def __init__(self, message: str = "", *, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class RemoteError(BarnraiseError):
    """The other side is to blame; this process carries on."""


class MalformedMessage(RemoteError):
    """Bytes from the network that do not decode, or decode to something that was not agreed."""


class DigestMismatch(RemoteError):
    """Content whose SHA-256 is not the digest under which it was promised."""


class Unauthenticated(RemoteError):
    """A signature, session, counter or invite that does not hold."""


class Refused(RemoteError):
    """The other side understood the request and refused it; asking again changes nothing."""


class Unavailable(RemoteError):
    """No answer in time; the same request may be sent again."""


class RateLimited(Unavailable):
    """Asked more often, or for more at once, than one caller may; later the same request is fine."""


class TooSlow(Unavailable):
    """Bytes came or were taken too slowly; a transfer can be taken up again where it broke."""


class ConfigError(BarnraiseError):
    """A setting, path or file that the person at the keyboard can correct."""


class StorageTrouble(ConfigError):
    """The disk takes no writes now (full, over quota, read-only, failing); nothing was half done: try again later."""


class LocalError(BarnraiseError):
    """A promise inside this program was broken: a bug of ours."""


class IllegalEvent(LocalError):
    """An event that the present state does not allow; the state is as it was."""
