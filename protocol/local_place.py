"""Where a process's local socket lies, and who is at its other end (protocol/local_socket.py).

Decides between the path that both sides know and the runtime directory, and what a folder must be to hold a socket: its
user's own, closed to everybody else. Touches these two folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError, Unauthenticated

HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX")
MOST_PATH_BYTES = 103
"""Of a Unix socket's path, everywhere: 108 with the final zero on Linux, 104 on macOS."""


def pointer_of(path: Path) -> Path:
    """The file that says where the socket is, where it is not at `path`."""
    return path.with_suffix(".at")


def pointed_at(path: Path) -> dict[str, Any]:
    """What the pointer file says: a `socket`, or a `port` and a `token`; nothing where there is none."""
    try:
        pointed = json.loads(pointer_of(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return pointed if isinstance(pointed, dict) else {}


def bound_socket(path: Path) -> tuple[socket.socket, Path]:
    """A socket at `path`, or, where that cannot be, in the runtime directory; and where it is."""
    elsewhere = f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]}.sock"
    if len(os.fsencode(path)) <= MOST_PATH_BYTES:
        with contextlib.suppress(OSError):
            return _bound_at(path), path
    place = _runtime_folder() / elsewhere
    try:
        place.unlink(missing_ok=True)
        return _bound_at(place), place
    except OSError as error:
        raise ConfigError(
            f"no socket can be made at {path} nor at {place} ({error.strerror or error}): name a folder of your own in "
            "the environment variable XDG_RUNTIME_DIR"
        ) from error


def _bound_at(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        path.chmod(0o600)
    except OSError:
        bound.close()
        raise
    return bound


def _runtime_folder() -> Path:
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and Path(given).is_dir():
        folder = Path(given) / "barnraise"
    else:
        folder = Path(tempfile.gettempdir()) / f"barnraise-{os.getuid()}"
    own_folder(folder)
    return folder


def own_folder(folder: Path) -> None:
    """Make the folder, for this user alone; ConfigError where it is somebody else's, or is none."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if sys.platform != "win32":
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise ConfigError(f"{folder} is not a folder of your own: remove it, or give this as its owner")
            if stat.S_IMODE(found.st_mode) & 0o077:
                folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror or error}") from error


def peer_uid(connection: Any) -> int:
    """The user at the other end, as the kernel knows it."""
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if ctypes.CDLL(None, use_errno=True).getpeereid(connection.fileno(), ctypes.byref(uid), ctypes.byref(gid)):
        raise Unauthenticated("the system does not say who asks")
    return int(uid.value)


def user_name(uid: int) -> str:
    """What the system calls a user."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"user {uid}"
