"""The page's password, where the operator has set one: as scrypt (RFC 7914) has it, in the run folder.

Decides how dear a try is: 64 MiB and a good part of a second, as OWASP's Password Storage Cheat Sheet has it. Always:
whoever reads the file reads no password; a file that makes no sense opens nothing. Touches `secret/page.password`,
which neither a backup nor a follower gets.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocol.errors import ConfigError, StorageTrouble
from protocol.private_files import read_private, write_private

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

PASSWORD_FILE = "secret/page.password"  # noqa: S105 - where it lies
LEAST_CHARACTERS = 12
MOST_CHARACTERS = 1000
_COST = {"n": 2**16, "r": 8, "p": 2}
_BYTES = 32


def set_password(folder: RunFolder, password: str) -> None:
    """Have the page take this one from now on."""
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        raise ConfigError(f"a password has at least {LEAST_CHARACTERS} characters: four words are easy to keep")
    salt = secrets.token_bytes(16)
    kept = {"salt": salt.hex(), "key": _derived(password, salt).hex()}
    write_private(_path(folder), json.dumps(kept).encode())


def drop_password(folder: RunFolder) -> bool:
    """Have the page take none; False: it took none."""
    had = has_password(folder)
    _path(folder).unlink(missing_ok=True)
    return had


def has_password(folder: RunFolder) -> bool:
    """Whether one was set."""
    return _path(folder).is_file()


def password_mark(folder: RunFolder) -> str:
    """Another one for each password that is set; empty where none is."""
    try:
        return hashlib.sha256(read_private(_path(folder))).hexdigest()
    except (OSError, ConfigError):
        return ""


def is_password(folder: RunFolder, password: str) -> bool:
    """Whether this is the one."""
    try:
        kept = json.loads(read_private(_path(folder)))
        salt, key = bytes.fromhex(kept["salt"]), bytes.fromhex(kept["key"])
    except (OSError, ConfigError, StorageTrouble, ValueError, KeyError, TypeError):
        return False
    return (
        len(key) == _BYTES and len(password) <= MOST_CHARACTERS and hmac.compare_digest(_derived(password, salt), key)
    )


def _derived(password: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_BYTES, n=_COST["n"], r=_COST["r"], p=_COST["p"]).derive(
        password.encode(errors="surrogatepass")
    )


def _path(folder: RunFolder) -> Path:
    return folder.root / PASSWORD_FILE
