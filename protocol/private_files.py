"""How a secret gets onto the disk: readable by its owner only from the first byte on, and whole or not at all.

Touches the file that it is given and that file's folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import ConfigError
from protocol.folders import sync_folder
from protocol.storage import is_storage_trouble, storage_trouble


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, atomically and durably; ConfigError where that is not possible."""
    writer = PrivateWriter(path)
    writer.add(content)
    writer.keep(path)


class PrivateWriter:
    """As `write_private`, of content that comes in pieces; it lies beside `path` until it is kept, or dropped.

    Whatever the disk refuses drops it, and is a StorageTrouble, or else a ConfigError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with self._told():
            # O_EXCL: never follow a link that someone left there; the mode is given at creation, so there is no moment
            # of 0644.
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")

    def add(self, piece: bytes | memoryview) -> None:
        """At its end."""
        with self._told():
            self._file.write(piece)

    def keep(self, path: Path) -> None:
        """Replace `path`, of the same folder, by what was added."""
        with self._told():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(path)
            sync_folder(path.parent)

    def drop(self) -> None:
        """Nothing of it is left; fine where it was kept."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if hasattr(self, "_file"):
                self.drop()
            if is_storage_trouble(error):
                raise storage_trouble(error.errno or 0, self._path) from error
            raise ConfigError(f"cannot write {self._path}: {error.strerror or error}") from error


def read_private(path: Path) -> bytes:
    """Content of a small file; raises ConfigError naming the file where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
