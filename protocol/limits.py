"""Every size and rate that the wire allows, each with its reason, and the gRPC options that enforce them.

Both sides import these, so neither can send what the other refuses. Where one side asks for exactly what the other
allows, what lies between them (a header that rounds, a clock that is read later) is added here, on the side that
refuses. Holds no state; does not import grpc.
"""

from __future__ import annotations

import math

PROTOCOL_VERSION = 5
"""Sent when enrolling and opening a session; protocol/versions.py says which others are taken. 2: a lease's recipe is
a message of its own, in which a worker of version 1 would read zeros. 3: the balance loss is the whole batch's, so a
worker of version 2 that cuts its batches would compute something else, and an audit would take that for a lie. 4: a
lease names its codec and what its blocks are made of, and a worker of version 3 would send what nobody can read. 5: a
heartbeat's answer carries the operator's announcement, and an opened session says its version; a worker of version 4
knows neither. A run may cut its columns into parts, which a worker of version 4 would take for whole ones."""

FRAME_BYTES = 512 * 1024
"""Payload of one raw frame: throughput over TLS is flat from 256 KiB to 1 MiB, and smaller frames keep memory low."""
FRAME_HEADER_BYTES = 16

MAX_CONTROL_BYTES = 1024 * 1024
"""Largest control message: a manifest of 1024 blocks with momenta takes 300 KiB, a page of a status up to 512."""
MAX_MESSAGE_BYTES = max(MAX_CONTROL_BYTES, FRAME_BYTES + FRAME_HEADER_BYTES)
"""What gRPC refuses before it reaches our code, compressed or not."""
MAX_METADATA_BYTES = 8 * 1024
"""A signed call's metadata takes under 1 KiB; the rest is for what gRPC and proxies add."""

MAX_NAME_CHARACTERS = 64
MAX_CONCURRENT_STREAMS = 32
"""Calls at once on one connection. A worker has a lease call, a heartbeat, an upload and a few downloads; gRPC's server
refuses what is over the limit with UNAVAILABLE instead of letting it wait."""
MAX_CONCURRENT_RPCS = 4096
"""Calls at once on a coordinator: a thousand workers with four each; above it gRPC answers RESOURCE_EXHAUSTED."""
MAX_CONNECTIONS = 4096
"""Connections at once: a worker has one. Above it new ones are closed, those that stand go on."""
MAX_WAIT_S = 30.0
"""Longest that AcquireLease is held open: under the idle limit of common home routers and proxies (60 s and up)."""

CALL_TIMEOUT_S = 20.0
"""Deadline of a small unary call (not of AcquireLease, which adds its wait)."""
MAX_CALL_S = 120.0
"""Longest deadline of a unary call: a long poll's wait and more. gRPC itself ends a call at its deadline, on both
sides; a call without one could be kept for ever by a caller that does not take its answer."""
STALL_TIMEOUT_S = 60.0
"""A stream on which nothing moves for this long has lost its peer: one frame takes 9 s at 64 KiB/s."""
MIN_TRANSFER_BYTES_PER_S = 16 * 1024
"""A transfer slower than this is broken off, to be resumed: the slowest DSL uplinks give 60 KiB/s."""
TRANSFER_GRACE_S = 60.0
"""Before the rate counts: a line that is shared comes and goes."""
MAX_TRANSFER_S = 3600.0
"""One stream lasts no longer; what is not through by then goes on in the next one, at the byte where it broke."""
DEADLINE_ROUNDING = 0.05
"""Share by which a deadline may grow on its way. gRPC's timeout header has three significant digits and is rounded up
by as much as 1 % (3600.001 s travels as 3610 s; src/core/lib/transport/timeout_encoding.cc); and to save bytes it sends
again one that it sent before on the connection, if that is longer by less than 3 % (hpack_encoder.cc)."""
DEADLINE_SLACK_S = 5.0
"""Between a caller's reckoning of a deadline and the other side's, besides rounding."""


def transfer_deadline_s(payload_bytes: int) -> float:
    """What a caller asks for one stream of a payload, from wherever it goes on.

    The whole payload's size decides, not what is left of it: before a resumed stream goes on, the other side reads what
    it has, and that takes the longer the less is left.
    """
    return min(MAX_TRANSFER_S, CALL_TIMEOUT_S + payload_bytes / MIN_TRANSFER_BYTES_PER_S)


def most_time_left_s(longest_s: float) -> float:
    """The most that whoever is called may find left of a deadline for which the caller asked `longest_s`."""
    return longest_s * (1.0 + DEADLINE_ROUNDING) + DEADLINE_SLACK_S


KEEPALIVE_TIME_MS = 30_000
"""Ping after this much silence: home NAT tables forget a quiet TCP flow after one to five minutes."""
KEEPALIVE_TIMEOUT_MS = 15_000
"""A connection whose ping is not answered for this long is dead: the power was cut, or the route is gone."""
MIN_PING_INTERVAL_MS = 15_000
"""The server hangs up on clients that ping faster than this: half of what ours do."""
HANDSHAKE_TIMEOUT_MS = 10_000
"""A peer that connects and does not finish TLS holds a socket no longer than this (gRPC's default is 120 s)."""
MAX_IDLE_CONNECTION_MS = 10 * 60_000
"""A connection without calls for this long is closed; a live worker has a heartbeat every few seconds."""
MAX_CONNECTION_AGE_MS = 3_600_000
"""Every connection is replaced after so long (gRPC jitters it): new calls go over a new one, running ones end first."""
MAX_CONNECTION_AGE_GRACE_MS = math.ceil(1000 * most_time_left_s(MAX_TRANSFER_S))
"""Then it is cut: later than the longest stream that is taken, so that no honest transfer is."""
MAX_PING_STRIKES = 2
"""Pings that come too early before the server hangs up."""
MAX_RECONNECT_BACKOFF_MS = 30_000
"""Longest pause between dials, jittered by gRPC: a restarted coordinator is found again within half a minute."""

_IDENTITY_ONLY = 1
"""Bit set of compression algorithms: only none. Tensors do not compress, and nothing can then unpack into a bomb."""


GrpcOptions = tuple[tuple[str, int], ...]

_BOTH_SIDES: GrpcOptions = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
)


def server_options() -> GrpcOptions:
    """Options for `grpc.aio.server(options=..., maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)`."""
    return (
        *_BOTH_SIDES,
        ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
        # not looked at yet; beyond the 1000 that gRPC has by itself it cancels calls at random, without a word
        ("grpc.server.max_pending_requests", MAX_CONCURRENT_RPCS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_CONCURRENT_RPCS),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", MAX_IDLE_CONNECTION_MS),
        ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_AGE_GRACE_MS),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.so_reuseport", 0),  # a second coordinator on the same port must fail, not share the workers
    )


def channel_options() -> GrpcOptions:
    """Options for `grpc.aio.secure_channel(..., options=...)`."""
    return (
        *_BOTH_SIDES,
        ("grpc.enable_retries", 0),  # a counter is used once: retries are signed anew by the worker, with its jitter
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.use_local_subchannel_pool", 1),  # one channel, one connection, so that closing one closes that one
        ("grpc.enable_http_proxy", 0),  # the bootstrap connection dials directly too; the environment decides nothing
    )
