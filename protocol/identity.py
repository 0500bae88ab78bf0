"""Who someone is on the wire: an Ed25519 key (RFC 8032), and the worker id that is a hash of it.

The private key never leaves the process or its own file (0600, written atomically).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from protocol.errors import ConfigError, Unauthenticated
from protocol.ids import WorkerId, worker_id_of
from protocol.private_files import read_private, write_private

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


class PrivateIdentity:
    """A key pair that signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.worker_id: WorkerId = worker_id_of(self.public_key)

    @classmethod
    def generate(cls) -> PrivateIdentity:
        """A new identity from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateIdentity:
        """The identity of a 32-byte seed: for simulations that must repeat exactly, never for a real key."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> PrivateIdentity:
        """Read what `save` wrote; ConfigError names the file where it is missing or not an Ed25519 key."""
        return cls.from_pem(read_private(path), path)

    @classmethod
    def from_pem(cls, pem: bytes, path: Path) -> PrivateIdentity:
        """What `to_pem` gave, found at `path`; ConfigError where it is not an Ed25519 key."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} does not hold a private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} holds another kind of key, expected Ed25519")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the private key, mode 0600."""
        write_private(path, self.to_pem())

    def to_pem(self) -> bytes:
        """The private key as PKCS #8 PEM, to be kept where nobody else reads it."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """64-byte signature; callers put their domain first (protocol/canonical.py)."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"PrivateIdentity({self.worker_id})"


def verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Raises Unauthenticated unless `signature` over `message` was made by the holder of `public_key`."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise Unauthenticated(f"public key has {len(public_key)} bytes, expected {PUBLIC_KEY_BYTES}")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise Unauthenticated(f"signature does not hold for key {worker_id_of(public_key)}") from error
