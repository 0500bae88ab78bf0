"""Folders that only the volunteer may enter, and one worker at a time. Touches the paths it is given only."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.errors import ConfigError
from protocol.file_lock import lock_file
from protocol.storage import telling_storage_trouble


def private_folder(path: Path) -> Path:
    """`path` as a folder that only its owner may enter, made where it is missing."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


class FolderLock:
    """Keeps a second worker out of a folder; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or ConfigError when another process has it."""
        with telling_storage_trouble(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock_file(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(
                f"another worker already uses {self._path.parent}; give this one a folder of its own with --home"
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
