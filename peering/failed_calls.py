"""What a call to another worker that failed means, and the words that a person reads of it: ours, never gRPC's.

Decides by the status alone: a busy one is nobody's fault (`RateLimited`), one that has not what was asked has refused.
What the other side wrote beside it is not passed on: it is a stranger's, or a library's. Touches nothing.
"""

from __future__ import annotations

import grpc

from protocol.errors import RateLimited, Refused, RemoteError, Unavailable

_OTHER_VERSION = "another worker does not understand what it is asked: is it of another version?"
_MEANS: dict[grpc.StatusCode, tuple[type[RemoteError], str]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: (RateLimited, "another worker is busy"),
    grpc.StatusCode.NOT_FOUND: (Refused, "what was asked of another worker is not there any more"),
    grpc.StatusCode.UNAUTHENTICATED: (Unavailable, "another worker does not take this machine's ticket, or signature"),
    grpc.StatusCode.INVALID_ARGUMENT: (Unavailable, _OTHER_VERSION),
    grpc.StatusCode.UNIMPLEMENTED: (Unavailable, _OTHER_VERSION),
    grpc.StatusCode.DEADLINE_EXCEEDED: (Unavailable, "another worker was too slow, or this machine for it"),
}


def told(error: grpc.aio.AioRpcError) -> RemoteError:
    """What gRPC raised."""
    kind, words = _MEANS.get(error.code(), (Unavailable, "another worker cannot be reached, or broke off"))
    return kind(words)
