"""From this machine to one that a link names: the channel there, and what a call's failure means.

Decides whom to blame, and which words a person reads: the other side's own where it said something, else ours, never
gRPC's. Always: only who has the certificate of the link's fingerprint is spoken to. Touches the network.
"""

from __future__ import annotations

import asyncio

import grpc

from protocol.bootstrap import fetch_ca
from protocol.causes import CAUSE_KEY, cause_named
from protocol.errors import Refused, RemoteError, Unauthenticated, Unavailable
from protocol.joinlink import JoinLink
from protocol.limits import channel_options
from protocol.text import printable
from protocol.tls import COORDINATOR_NAME

CONNECT_S = 10.0
"""For the certificate to be shown."""
OTHER_VERSION = "is it of another version?"
_MOST_SAID = 600
_BLAME: dict[grpc.StatusCode, type[RemoteError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.INVALID_ARGUMENT: Refused,
}


async def dialled(link: JoinLink) -> grpc.aio.Channel:
    """A channel to the one machine that `link` names, to be closed by the caller."""
    ca_pem = await asyncio.to_thread(fetch_ca, link.host, link.port, link.fingerprint, CONNECT_S)
    credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    # What is shown certifies this one machine only, under whatever address it is reached.
    options = [*channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    return grpc.aio.secure_channel(link.target, credentials, options=options)


def told(error: grpc.aio.AioRpcError, where: str = "there") -> RemoteError:
    """What gRPC raised. `where`: as in "nobody answers `where`"."""
    trailers = dict(tuple(error.trailing_metadata() or ()))
    cause, code = cause_named(trailers.get(CAUSE_KEY)), error.code()
    if cause is not None:
        return _BLAME.get(code, Unavailable)(printable((error.details() or "")[:_MOST_SAID]), cause=cause)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(f"who answers {where} does not know this: {OTHER_VERSION}")
    return Unavailable(f"nobody answers {where}: try again in a moment")
