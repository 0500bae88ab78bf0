"""Folders that only the volunteer may enter, and one worker at a time. Touches the paths it is given only."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import ConfigError
from protocol.file_lock import FileLock


def private_folder(path: Path) -> Path:
    """`path` as a folder that only its owner may enter, made where it is missing, as are those above it."""
    try:
        for folder in (*reversed(path.parents), path):  # `parents=True` would leave those above open to everybody
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def worker_lock(path: Path) -> FileLock:
    """The lock that keeps a second worker out of the folder that holds `path`."""
    said = f"another worker already uses {path.parent}; give this one a folder of its own with --home"
    return FileLock(path, lambda _: said)
