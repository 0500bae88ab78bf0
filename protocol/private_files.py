"""How a secret gets onto the disk: readable by its owner only from the first byte on, and whole or not at all.

Touches the file that it is given and that file's folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from protocol.errors import ConfigError
from protocol.folders import sync_folder
from protocol.storage import is_storage_trouble, storage_trouble


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, atomically and durably; ConfigError where that is not possible."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_storage_trouble(error):
            raise storage_trouble(error.errno or 0, path) from error
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def read_private(path: Path) -> bytes:
    """Content of a small file; raises ConfigError naming the file where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _write_new(path: Path, content: bytes) -> None:
    # O_EXCL: never follow a link that someone left there; the mode is given at creation, so there is no moment of 0644.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
