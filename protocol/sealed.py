"""A secret in a file that only a passphrase opens: scrypt (RFC 7914) and ChaCha20-Poly1305 (RFC 8439).

Decides the format and its costs. Holds always: reading costs no more memory than writing does, whatever the file asks
for; a file that was changed anywhere opens for no passphrase. Touches nothing.
"""

from __future__ import annotations

import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocol.errors import ConfigError

MAX_SEALED_BYTES = 1 << 20
LEAST_PASSPHRASE = 8
"""Characters: scrypt makes each guess dear, and no passphrase good."""
_N, _R, _P = 2**17, 8, 1
"""128 MiB and a third of a second a guess: OWASP's first choice of 2023."""
_SALT_BYTES, _NONCE_BYTES, _KEY_BYTES = 16, 12, 32
_FORMAT = "barnraise-sealed-1"


def sealed(content: bytes, passphrase: str) -> bytes:
    """A file's content that opens to `content`; ConfigError for a passphrase that is too short."""
    if len(passphrase) < LEAST_PASSPHRASE:
        raise ConfigError(f"a passphrase has at least {LEAST_PASSPHRASE} characters")
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    hidden = ChaCha20Poly1305(_key(passphrase, salt)).encrypt(nonce, content, _FORMAT.encode() + salt)
    fields = {"format": _FORMAT, "salt": salt.hex(), "nonce": nonce.hex(), "content": hidden.hex()}
    return json.dumps(fields, indent=1).encode() + b"\n"


def opened(file: bytes, passphrase: str) -> bytes:
    """What was sealed; ConfigError where it is another kind of file, another passphrase, or not as it was written."""
    try:
        fields = json.loads(file) if len(file) <= MAX_SEALED_BYTES else None
        if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
            raise ValueError("of another kind")
        salt, nonce, hidden = (bytes.fromhex(fields[name]) for name in ("salt", "nonce", "content"))
        if (len(salt), len(nonce)) != (_SALT_BYTES, _NONCE_BYTES):
            raise ValueError("of other lengths")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError("this is not a file that `barnraise worker identity export` wrote") from error
    try:
        return ChaCha20Poly1305(_key(passphrase, salt)).decrypt(nonce, hidden, _FORMAT.encode() + salt)
    except InvalidTag as error:
        raise ConfigError("the passphrase is not the one, or the file was changed since it was written") from error


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=_N, r=_R, p=_P).derive(passphrase.encode())
