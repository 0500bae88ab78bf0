"""The bootstrap connection: obtains a coordinator's CA certificate, trusting nothing but its fingerprint.

gRPC cannot connect without verifying, so this is a bare TLS handshake with the coordinator's own gRPC port. Nothing
is sent over it. Python offers the peer's chain as a public method since 3.13; 3.11 and 3.12, which only get security
fixes any more, have the same method on the private object underneath.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from protocol.causes import Cause
from protocol.errors import LocalError, Unauthenticated, Unavailable

_DER_ENCODING = 2
"""`_ssl.ENCODING_DER`, which the private objects of Python 3.11 and 3.12 take."""
_MAX_CHAIN = 8
"""Certificates that are looked at; a coordinator sends two. OpenSSL itself stops reading a chain at 100 KiB."""


def fetch_ca(host: str, port: int, fingerprint: str, timeout_s: float) -> bytes:
    """PEM of the certificate with SHA-256 `fingerprint` (hexadecimal) in the chain that `host`:`port` presents.

    Blocks for at most `timeout_s` after the name is resolved. Raises Unavailable where nobody answers with TLS in
    time, and Unauthenticated where somebody does who has no such certificate.
    """
    where = f"{host} port {port}"
    return _certificate(_peer_chain(partial(_over_tcp, host, port), where, timeout_s), fingerprint, where)


def fetch_ca_behind(path: Path, fingerprint: str, timeout_s: float) -> bytes:
    """The same of whoever is behind a Unix socket. Blocks likewise."""
    return _certificate(_peer_chain(partial(_over_socket, path), str(path), timeout_s), fingerprint, str(path))


def _certificate(chain: list[bytes], fingerprint: str, where: str) -> bytes:
    expected = fingerprint.lower().encode("ascii", "replace")
    offered = [hashlib.sha256(certificate).hexdigest() for certificate in chain]
    for certificate, got in zip(chain, offered, strict=True):
        if hmac.compare_digest(got.encode(), expected):
            return ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
    raise Unauthenticated(
        f"{where} is not the coordinator of this join link: expected a certificate with fingerprint"
        f" {fingerprint}, got {', '.join(offered) or 'none'}",
        cause=Cause.WRONG_CERTIFICATE,
    )


def _over_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((host, port), timeout=timeout_s)


def _over_socket(path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _peer_chain(connect: Callable[[float], socket.socket], where: str, timeout_s: float) -> list[bytes]:
    deadline_s = time.monotonic() + timeout_s
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is the only thing to go by; see fetch_ca
    context.set_alpn_protocols(["h2"])
    try:
        with (
            connect(timeout_s) as raw,
            context.wrap_socket(raw, do_handshake_on_connect=False) as connection,
        ):
            _handshake(connection, deadline_s)
            return _unverified_chain(connection)[:_MAX_CHAIN]
    except TimeoutError as error:
        said = f"no TLS answer from {where} within {timeout_s:g} s"
        raise Unavailable(said, cause=Cause.NO_ANSWER) from error
    except ssl.SSLError as error:
        said = f"{where} does not speak TLS as a coordinator does: {error.reason}"
        raise Unavailable(said, cause=Cause.NOT_A_COORDINATOR) from error
    except OSError as error:
        said = f"cannot reach {where}: {error.strerror or error}"
        raise Unavailable(said, cause=_cause_of(error)) from error


def _cause_of(error: OSError) -> Cause:
    if isinstance(error, socket.gaierror):
        return Cause.NAME_UNKNOWN
    if isinstance(error, ConnectionRefusedError):
        return Cause.CONNECTION_REFUSED
    if isinstance(error, ConnectionError):
        return Cause.BROKEN_OFF
    return Cause.NO_ROUTE if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH} else Cause.UNREACHABLE


def _handshake(connection: ssl.SSLSocket, deadline_s: float) -> None:
    """Shake hands by `deadline_s` in all: a socket's own timeout starts anew with every byte that trickles in."""
    connection.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            try:
                connection.do_handshake()
                return
            except ssl.SSLWantReadError:
                selector.modify(connection, selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                selector.modify(connection, selectors.EVENT_WRITE)
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0 or not selector.select(remaining_s):
                raise TimeoutError


def _unverified_chain(connection: Any) -> list[bytes]:
    """DER of each certificate that the peer sent, leaf first."""
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13 and later
        return list(connection.get_unverified_chain())
    private: Any = getattr(connection, "_sslobj", None)
    if not hasattr(private, "get_unverified_chain"):
        raise LocalError("this Python's ssl module cannot show the peer's certificate chain; CPython 3.11 or later can")
    return [certificate.public_bytes(_DER_ENCODING) for certificate in private.get_unverified_chain() or ()]
