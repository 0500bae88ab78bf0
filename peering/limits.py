"""What one worker takes from and gives to another at most, each with its reason. Holds no state; imports no grpc."""

from __future__ import annotations

from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES, GrpcOptions, channel_options, server_options

PEER_METHOD = "/barnraise.protocol.v1.Peer/Take"
FIND_METHOD = "/barnraise.protocol.v1.Peer/Find"
FIND_S = 5.0
"""For asking another worker where the run is, its connection and handshake included: milliseconds where it lives."""
UPLOAD_SLOTS = 2
"""Blocks that a worker gives at once; whoever comes then is told that it is busy. More would each get less of a home's
uplink, and be passed on later."""
MOST_QUEUED = 8
"""That wait for a slot; whoever comes then is told so at once, and goes to somebody else."""
QUEUED_S = 3.0
"""How long: a block of some megabytes takes as long over a home's uplink."""
MAX_REQUEST_BYTES = 8 * 1024
"""A request with its ticket takes under 1 KiB."""
MAX_CERTIFICATE_BYTES = 2 * 1024
"""DER; ours has 400 bytes."""
MAX_PEER_CONNECTIONS = 64
MAX_PEER_CALLS = 128
"""Calls at once, those included that are told to come again. A swarm of 64 has four each under way."""
OPENING_S = 10.0
"""For the greeting, and for the request that follows it."""
FRAME_STALL_S = 20.0
"""Nothing moves for so long: generous, since a home's uplink may be busy with a submission."""
MIN_PEER_BYTES_PER_S = 32 * 1024
"""Slower than this for longer than `PEER_GRACE_S`, a transfer is broken off; somebody else goes on where it broke."""
PEER_GRACE_S = 30.0
MIN_SHARE_BYTES_PER_S = 100_000
"""The least that may be offered: under it two transfers at once would stall each other."""
PEER_IDLE_MS = 60_000
"""A connection without calls is closed after so long: the next round opens another."""


def peer_server_options() -> GrpcOptions:
    """A worker listens for other workers: as the coordinator, but for far fewer and with small requests alone."""
    own = {
        "grpc.max_receive_message_length": MAX_REQUEST_BYTES,
        "grpc.max_allowed_incoming_connections": MAX_PEER_CONNECTIONS,
        "grpc.max_connection_idle_ms": PEER_IDLE_MS,
    }
    return tuple((name, own.get(name, value)) for name, value in server_options())


def peer_channel_options() -> GrpcOptions:
    """To another worker: it sends frames, and nothing larger."""
    own = {"grpc.max_receive_message_length": FRAME_BYTES + FRAME_HEADER_BYTES}
    return tuple((name, own.get(name, value)) for name, value in channel_options())


def peer_deadline_s(payload_bytes: int) -> float:
    """How long one transfer of so many bytes may take; what a liar that drips costs at most."""
    return PEER_GRACE_S + payload_bytes / MIN_PEER_BYTES_PER_S
