"""Certificates, vouches, and the way from a fingerprint to a verified gRPC channel, against a real grpc.aio server."""

import asyncio
import hashlib
import ipaddress
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from protocol import bootstrap
from protocol.bootstrap import fetch_ca
from protocol.errors import ConfigError, LocalError, MalformedMessage, Unauthenticated, Unavailable
from protocol.ids import RunId
from protocol.limits import channel_options, server_options
from protocol.tls import (
    COORDINATOR_NAME,
    CertificateAuthority,
    LeafCertificate,
    fingerprint_of,
    manifest_key_message,
    verify_vouch,
)

_METHOD = "/barnraise.test/Echo"
_AUTHORITY = CertificateAuthority.create(RunId("run-1"))
_STRANGER = CertificateAuthority.create(RunId("run-1"))
_LEAF = _AUTHORITY.issue_leaf(["train.example.org", "192.0.2.7", "[2001:db8::1]"])


async def _echo(request: bytes, _: Any) -> bytes:
    return request


@asynccontextmanager
async def _serve(leaf: LeafCertificate = _LEAF, address: str = "127.0.0.1:0") -> AsyncIterator[int]:
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("barnraise.test", {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}),)
    )
    port = server.add_secure_port(address, grpc.ssl_server_credentials([(leaf.key_pem, leaf.cert_pem)]))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def _multicallable(channel: Any) -> Any:
    return channel.unary_unary(_METHOD)


async def _call(host: str, port: int, ca_pem: bytes, *options: tuple[str, Any]) -> bytes:
    credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    async with grpc.aio.secure_channel(
        f"{host}:{port}", credentials, options=(*channel_options(), *options)
    ) as channel:
        reply: bytes = await _multicallable(channel)(b"hello", timeout=5)
        return reply


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_host_port_and_fingerprint_are_enough(host: str) -> None:
    async with _serve() as port:
        ca_pem = await asyncio.to_thread(fetch_ca, host, port, _AUTHORITY.fingerprint, 5.0)
        assert ca_pem == _AUTHORITY.cert_pem
        assert await _call(host, port, ca_pem) == b"hello"


async def test_ipv6_loopback() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with _serve(address="[::1]:0") as port:
        ca_pem = await asyncio.to_thread(fetch_ca, "::1", port, _AUTHORITY.fingerprint, 5.0)
        assert await _call("[::1]", port, ca_pem) == b"hello"


@pytest.mark.parametrize("name", ["train.example.org", "192.0.2.7", "2001:db8::1", COORDINATOR_NAME])
async def test_the_leaf_verifies_for_every_host_it_was_made_for(name: str) -> None:
    async with _serve() as port:
        assert await _call("127.0.0.1", port, _AUTHORITY.cert_pem, ("grpc.ssl_target_name_override", name)) == b"hello"


@pytest.mark.parametrize("name", ["example.org", "192.0.2.8", "sub.train.example.org"])
async def test_the_leaf_verifies_for_no_other_host(name: str) -> None:
    async with _serve() as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _call("127.0.0.1", port, _AUTHORITY.cert_pem, ("grpc.ssl_target_name_override", name))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_grpc_refuses_the_leaf_of_another_authority() -> None:
    async with _serve(_STRANGER.issue_leaf()) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _call("127.0.0.1", port, _AUTHORITY.cert_pem)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_stranger_with_our_ca_in_its_chain_gets_no_call() -> None:
    """The CA certificate is public: showing it passes the bootstrap, and then TLS asks for a leaf that it signed."""
    leaf = _STRANGER.issue_leaf()
    own = leaf.cert_pem.replace(_STRANGER.cert_pem, b"")
    async with _serve(LeafCertificate(cert_pem=own + _AUTHORITY.cert_pem, key_pem=leaf.key_pem)) as port:
        ca_pem = await asyncio.to_thread(fetch_ca, "127.0.0.1", port, _AUTHORITY.fingerprint, 5.0)
        with pytest.raises(grpc.aio.AioRpcError):
            await _call("127.0.0.1", port, ca_pem)


async def test_the_bootstrap_refuses_another_fingerprint_and_names_both() -> None:
    async with _serve(_STRANGER.issue_leaf()) as port:
        with pytest.raises(Unauthenticated) as caught:
            await asyncio.to_thread(fetch_ca, "127.0.0.1", port, _AUTHORITY.fingerprint, 5.0)
        assert _AUTHORITY.fingerprint in str(caught.value)
        assert _STRANGER.fingerprint in str(caught.value)


@pytest.mark.parametrize("fingerprint", ["", "é" * 64, "0" * 64])
async def test_the_bootstrap_refuses_what_is_no_fingerprint(fingerprint: str) -> None:
    async with _serve() as port:
        with pytest.raises(Unauthenticated):
            await asyncio.to_thread(fetch_ca, "127.0.0.1", port, fingerprint, 5.0)


async def test_a_tls_verifier_with_strict_rules_accepts_the_chain() -> None:
    context = ssl.create_default_context(cadata=_AUTHORITY.cert_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    context.set_alpn_protocols(["h2"])

    def connect(port: int) -> str | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        ):
            return connection.selected_alpn_protocol()

    async with _serve() as port:
        assert await asyncio.to_thread(connect, port) == "h2"


@contextmanager
def _listener(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that accepts one connection and lets `behave` have it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            try:
                connection, _ = server.accept()
                with connection:
                    behave(connection)
            except OSError:
                pass  # the other side hung up, which is what these tests are about

        thread = Thread(target=run, daemon=True)
        thread.start()
        yield server.getsockname()[1]
    thread.join(5)
    assert not thread.is_alive()


def _stay_silent(connection: socket.socket) -> None:
    connection.settimeout(5)
    while connection.recv(4096):
        pass


def _trickle(connection: socket.socket) -> None:
    """The header of a handshake record of 16 KiB, then for 3 s a byte whenever the other side could lose patience."""
    connection.settimeout(0.02)
    connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
    for _ in range(150):
        try:
            if not connection.recv(4096):
                return
        except TimeoutError:
            connection.sendall(b"\x03")


@pytest.mark.parametrize("behave", [_stay_silent, _trickle])
def test_a_server_that_stalls_costs_no_more_than_the_timeout(behave: Callable[[socket.socket], None]) -> None:
    with _listener(behave) as port:
        started_s = time.monotonic()
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            fetch_ca("127.0.0.1", port, _AUTHORITY.fingerprint, 0.2)
        assert 0.15 < time.monotonic() - started_s < 2


def test_a_server_that_speaks_something_else_is_named() -> None:
    answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with (
        _listener(lambda connection: connection.sendall(answer)) as port,
        pytest.raises(Unavailable, match=f"{port} does not speak TLS"),
    ):
        fetch_ca("127.0.0.1", port, _AUTHORITY.fingerprint, 5.0)


def test_a_server_that_hangs_up_is_unavailable() -> None:
    with _listener(lambda connection: connection.close()) as port, pytest.raises(Unavailable):
        fetch_ca("127.0.0.1", port, _AUTHORITY.fingerprint, 5.0)


def test_nobody_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match=f"cannot reach 127.0.0.1 port {port}"):
        fetch_ca("127.0.0.1", port, _AUTHORITY.fingerprint, 5.0)


def test_both_ways_to_the_chain_are_used() -> None:
    class Certificate:
        def public_bytes(self, encoding: int) -> bytes:
            return b"der" if encoding == 2 else b""

    class Public:
        def get_unverified_chain(self) -> list[bytes]:
            return [b"der"]

    class Private:
        class _sslobj:  # noqa: N801
            @staticmethod
            def get_unverified_chain() -> list[Certificate]:
                return [Certificate()]

    assert bootstrap._unverified_chain(Public()) == [b"der"]
    assert bootstrap._unverified_chain(Private()) == [b"der"]
    with pytest.raises(LocalError, match="cannot show"):
        bootstrap._unverified_chain(object())


def test_save_and_load(tmp_path: Path) -> None:
    _AUTHORITY.save(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    loaded = CertificateAuthority.load(tmp_path)
    assert loaded.fingerprint == _AUTHORITY.fingerprint == fingerprint_of(_AUTHORITY.cert_pem)
    verify_vouch(_AUTHORITY.cert_pem, b"message", loaded.sign(b"message"))


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        CertificateAuthority.load(tmp_path)
    _AUTHORITY.save(tmp_path)
    certificate = (tmp_path / "ca.pem").read_bytes()
    _STRANGER.save(tmp_path)
    (tmp_path / "ca.pem").write_bytes(certificate)
    with pytest.raises(ConfigError, match="is not the key of"):
        CertificateAuthority.load(tmp_path)
    (tmp_path / "ca.key").write_text("no key")
    with pytest.raises(ConfigError, match="does not hold a certificate authority"):
        CertificateAuthority.load(tmp_path)


def test_the_fingerprint_is_of_the_der_bytes() -> None:
    assert _AUTHORITY.fingerprint == hashlib.sha256(ssl.PEM_cert_to_DER_cert(_AUTHORITY.cert_pem.decode())).hexdigest()
    with pytest.raises(MalformedMessage):
        fingerprint_of(b"no certificate")


def test_the_chain_is_leaf_then_ca_and_the_leaf_is_no_authority() -> None:
    leaf, ca = x509.load_pem_x509_certificates(_LEAF.cert_pem)
    leaf.verify_directly_issued_by(ca)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    authority = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (authority.ca, authority.path_length) == (True, 0)
    names = leaf.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(names, x509.SubjectAlternativeName)
    assert set(names.get_values_for_type(x509.DNSName)) == {COORDINATOR_NAME, "localhost", "train.example.org"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address(address) for address in ("127.0.0.1", "::1", "192.0.2.7", "2001:db8::1")
    }


def test_hosts_given_twice_or_in_other_alphabets() -> None:
    leaf = x509.load_pem_x509_certificate(_AUTHORITY.issue_leaf(["localhost", "bücher.example"]).cert_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [COORDINATOR_NAME, "localhost", "xn--bcher-kva.example"]


@pytest.mark.parametrize("host", ["", "a..b", "x" * 64])
def test_invalid_hosts_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name or address"):
        _AUTHORITY.issue_leaf([host])


def test_keys_stay_out_of_repr() -> None:
    assert b"PRIVATE KEY" in _LEAF.key_pem
    assert "PRIVATE KEY" not in repr(_LEAF)


def test_a_long_run_id_still_makes_a_certificate() -> None:
    CertificateAuthority.create(RunId("r" * 200))


def test_a_vouch_holds_for_its_message_and_authority_only() -> None:
    message = manifest_key_message(RunId("run-1"), bytes(32))
    signature = _AUTHORITY.sign(message)
    verify_vouch(_AUTHORITY.cert_pem, message, signature)
    for ca_pem, text, vouch in (
        (_AUTHORITY.cert_pem, manifest_key_message(RunId("run-2"), bytes(32)), signature),
        (_AUTHORITY.cert_pem, manifest_key_message(RunId("run-1"), bytes(31) + b"\1"), signature),
        (_STRANGER.cert_pem, message, signature),
        (_AUTHORITY.cert_pem, message, signature[:-1]),
        (_AUTHORITY.cert_pem, message, b""),
    ):
        with pytest.raises(Unauthenticated):
            verify_vouch(ca_pem, text, vouch)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda der: der.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030163")),
            Unauthenticated,
        ),
        (lambda der: der.replace(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0263")), Unauthenticated),
        (lambda der: der.replace(b"\x03\x42\x00\x04", b"\x03\x42\x00\x05"), Unauthenticated),
        (lambda der: der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x63"), MalformedMessage),
    ],
    ids=["another curve", "another kind of key", "no point of the curve", "another version"],
)
def test_a_certificate_that_cannot_be_used_is_refused(change: Callable[[bytes], bytes], error: type[Exception]) -> None:
    """A coordinator chooses its own certificate, and with it the fingerprint in its join links."""
    der = x509.load_pem_x509_certificate(_AUTHORITY.cert_pem).public_bytes(Encoding.DER)
    assert change(der) != der
    with pytest.raises(error):
        verify_vouch(ssl.DER_cert_to_PEM_cert(change(der)).encode(), b"message", _AUTHORITY.sign(b"message"))


def test_a_certificates_signature_is_no_vouch() -> None:
    leaf = x509.load_pem_x509_certificate(_LEAF.cert_pem)
    with pytest.raises(Unauthenticated):
        verify_vouch(_AUTHORITY.cert_pem, leaf.tbs_certificate_bytes, leaf.signature)
