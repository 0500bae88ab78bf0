"""The error tree: who is to blame, and what to do about it.

    BarnraiseError
    ├── RemoteError            the other side sent something wrong
    │   ├── MalformedMessage   bytes that do not decode, or decode to something that was not asked for
    │   ├── DigestMismatch     content that is not what its digest promised
    │   ├── Unauthenticated    a signature, session, counter or invite that does not hold
    │   ├── Refused            the other side understood and said no
    │   │   └── FinalRefusal   and never will say yes to what was offered: nobody need keep it
    │   └── Unavailable        no connection, a deadline passed, or the other side is overloaded: try again
    │       ├── BrokeDown      the other side failed on this very call: again may fail again
    │       ├── RateLimited    asked more often, or for more at once, than one caller may
    │       └── TooSlow        bytes came or were taken too slowly to go on waiting
    ├── ConfigError            a setting, path or file that the person at the keyboard can correct
    │   └── StorageTrouble     the disk is full, read-only or failing: nothing was half done, and going on works later
    └── LocalError             a broken promise inside this program: our bug
        └── IllegalEvent       an event that the present state does not allow

Messages name who, which round, which shard, what was expected and what came; they are for diagnosis. An error that a
volunteer may have to read about carries a `Cause`, by which the sentence is chosen.

Statuses of gRPC say whom to blame. They cannot say "final": gRPC gives some of them itself, and a caller's own bug
looks like a refusal too. So a final refusal, and nothing else, carries `FINAL_TRAILER` in its trailing metadata.
"""

from __future__ import annotations

from typing import Final

from protocol.causes import Cause

FINAL_TRAILER: Final = ("barnraise-final", "1")
"""Trained work is only ever thrown away over an answer that carries this."""


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


class FinalRefusal(Refused):
    """What was offered will never be taken, whatever is done about it; whoever keeps it may let it go."""


class Unavailable(RemoteError):
    """No answer in time; the same request may be sent again."""


class BrokeDown(Unavailable):
    """The other side failed on this call, by a fault of its own; what was offered is as good as before."""


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
