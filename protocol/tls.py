"""The coordinator's own certificate authority, and how a worker comes to trust it with nothing but a fingerprint.

At `init` a run gets a CA and, from it, the coordinator's leaf (both ECDSA P-256: gRPC refuses Ed25519 certificates).
The leaf is served as a chain with the CA behind it. A worker that holds only host, port and fingerprint makes one
bootstrap connection that verifies nothing, takes from the chain the certificate whose SHA-256 is the fingerprint,
hangs up without having sent a byte of its own, and from then on speaks gRPC with that certificate as its only root.
The CA's key also vouches for the key that signs manifests.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.bootstrap import fetch_ca
from protocol.canonical import length_prefixed
from protocol.errors import ConfigError, MalformedMessage, Unauthenticated
from protocol.hosts import canonical_host
from protocol.ids import RunId
from protocol.private_files import read_private, write_private

__all__ = [
    "COORDINATOR_NAME",
    "CertificateAuthority",
    "LeafCertificate",
    "fetch_ca",
    "fingerprint_of",
    "manifest_key_message",
    "verify_vouch",
]

COORDINATOR_NAME = "coordinator.barnraise.internal"
"""In every leaf, for workers that reach the coordinator by an address that it did not know of (gRPC channel option
`grpc.ssl_target_name_override`): the CA certifies only this coordinator, so the name says no less than an address."""

_CERTIFICATE_FILE = "ca.pem"
_KEY_FILE = "ca.key"
_VOUCH_DOMAIN = b"barnraise-vouch-v1"
_ALWAYS_HOSTS = (COORDINATOR_NAME, "localhost", "127.0.0.1", "::1")
_CLOCK_SKEW = datetime.timedelta(days=2)
"""Home computers with a wrong clock, a wrong zone in particular, must still be able to join."""
_LIFETIME = datetime.timedelta(days=3650)
"""Longer than any run. The leaf lives as long: its key lies beside the CA's, so a shorter life protects nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafCertificate:
    """What a gRPC server needs: the chain (leaf, then CA) and the leaf's key, both PEM."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)


class CertificateAuthority:
    """One run's authority: issues leaves and vouches."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self.cert_pem: bytes = certificate.public_bytes(Encoding.PEM)
        self.fingerprint: str = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()

    @classmethod
    def create(cls, run_id: RunId) -> CertificateAuthority:
        """A new authority for `run_id`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"barnraise {run_id}")
        builder = _builder(name, name, key.public_key(), key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(builder.add_extension(_key_usage(ca=True), critical=True).sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Read what `save` wrote into `folder`."""
        try:
            certificate = x509.load_pem_x509_certificate(read_private(folder / _CERTIFICATE_FILE))
            key = load_pem_private_key(read_private(folder / _KEY_FILE), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{folder} does not hold a certificate authority: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{folder / _KEY_FILE} is not the key of {folder / _CERTIFICATE_FILE}")
        return cls(certificate, key)

    def save(self, folder: Path) -> None:
        """Write certificate and key into `folder`, both 0600."""
        write_private(folder / _CERTIFICATE_FILE, self.cert_pem)
        write_private(folder / _KEY_FILE, _key_pem(self._key))

    def issue_leaf(self, hosts: tuple[str, ...] | list[str] = ()) -> LeafCertificate:
        """A server certificate for `hosts` (names or addresses), for loopback, and for COORDINATOR_NAME."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = list(dict.fromkeys(_general_name(host) for host in (*_ALWAYS_HOSTS, *hosts)))
        certificate = (
            _builder(
                _name("barnraise coordinator"), self._certificate.subject, key.public_key(), self._key.public_key()
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return LeafCertificate(cert_pem=certificate.public_bytes(Encoding.PEM) + self.cert_pem, key_pem=_key_pem(key))

    def sign(self, message: bytes) -> bytes:
        """Vouch for `message`: a signature that `verify_vouch` accepts and that never passes for a certificate's."""
        return self._key.sign(length_prefixed(_VOUCH_DOMAIN, message), ec.ECDSA(hashes.SHA256()))


def manifest_key_message(run_id: RunId, manifest_public_key: bytes) -> bytes:
    """What the CA vouches for when a worker enrols: that this key signs the manifests of this run."""
    return length_prefixed(b"manifest-key", run_id.encode(), manifest_public_key)


def fingerprint_of(ca_pem: bytes) -> str:
    """SHA-256 of the certificate's DER bytes, in lower-case hexadecimal; MalformedMessage if it is not one."""
    return hashlib.sha256(_load_certificate(ca_pem).public_bytes(Encoding.DER)).hexdigest()


def verify_vouch(ca_pem: bytes, message: bytes, signature: bytes) -> None:
    """Raises Unauthenticated unless the CA of `ca_pem` vouched for `message`."""
    try:
        key = _load_certificate(ca_pem).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:  # of a kind or curve that is not known here, or no point of it
        raise Unauthenticated(f"certificate authority has a key that cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Unauthenticated("certificate authority has another kind of key, expected ECDSA")
    try:
        key.verify(signature, length_prefixed(_VOUCH_DOMAIN, message), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Unauthenticated("the coordinator's certificate authority did not vouch for this message") from error


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedMessage(f"not a certificate in PEM: {error}") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    # X.520 allows a common name 64 characters; nothing is read from it.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(host: str) -> x509.GeneralName:
    canonical = canonical_host(host)
    try:
        return x509.IPAddress(ipaddress.ip_address(canonical))
    except ValueError:
        return x509.DNSName(canonical)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
