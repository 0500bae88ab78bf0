"""Where the run is, from one process to another: whoever shares answers, and whoever looks for the run asks.

Decides nothing about records (peering/keeping.py does): each side says which one it has, and the older gives way.
Always: no ticket is asked for, since a record is public and only the run's authority can make one; what is said is at
most a record long, on both sides. Touches the network.
"""

from __future__ import annotations

import ssl
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from peering.failed_calls import told
from peering.keeping import RecordKeeper
from peering.limits import FIND_METHOD, FIND_S, peer_channel_options
from peering.record import MAX_RECORD_BYTES
from protocol.errors import MalformedMessage, RateLimited, RemoteError
from protocol.hosts import dial_target
from protocol.ids import Digest
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb


def answer(body: bytes, keeper: RecordKeeper) -> bytes:
    """What `Find` is answered with; MalformedMessage or RateLimited where it is not.

    A record that does not hold is nobody's fault who passes it on: it is left where it is.
    """
    try:
        request = pb.FindRequest.FromString(body)
    except DecodeError as error:
        raise MalformedMessage("the request is not a FindRequest") from error
    if request.fingerprint.hex() != keeper.fingerprint:
        return b""
    if request.record:
        try:
            keeper.offer_of_stranger(request.record)
        except RateLimited:
            raise
        except RemoteError:
            pass
    return bytes(pb.FindReply(record=keeper.told).SerializeToString())


async def asked(
    host: str, port: int, certificate: bytes, fingerprint: Digest, own: bytes = b"", *, limit_s: float = FIND_S
) -> bytes:
    """The record that whoever listens there under `certificate` (DER) has; empty: none. `own`: what it may learn.

    RemoteError where nobody answers so.
    """
    try:
        pem = ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
        credentials = grpc.ssl_channel_credentials(root_certificates=pem)
        options = [*peer_channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        request = pb.FindRequest(fingerprint=bytes.fromhex(fingerprint), record=own)
        async with grpc.aio.secure_channel(dial_target(host, port), credentials, options=options) as channel:
            call: Any = channel.unary_unary(FIND_METHOD, None, None)
            body = bytes(await call(request.SerializeToString(), timeout=limit_s))
    except grpc.aio.AioRpcError as error:
        raise told(error) from None
    except ValueError as error:
        raise MalformedMessage("another worker's certificate is none") from error
    return record_told(body)


def record_told(body: bytes) -> bytes:
    """The record in a `FindReply`, of which nothing is believed yet; MalformedMessage where it is none."""
    try:
        record = bytes(pb.FindReply.FromString(body).record)
    except DecodeError as error:
        raise MalformedMessage("what another worker says of the run is no answer") from error
    if len(record) > MAX_RECORD_BYTES:
        raise MalformedMessage(f"another worker's record has {len(record)} bytes, at most {MAX_RECORD_BYTES}")
    return record
