"""Where a run's coordinator is reached from its own machine, and in words why it is not.

Decides between: it answers; it is stopped; it is there and does not answer; its port is somebody else's by now. Always:
what is dialled is what the coordinator listens on, or loopback, never what it advertises: behind a router, or before
the name is in the DNS, that does not lead back here. Whether a coordinator lives is told by the run folder's lock,
which ends with its process, not by a process number or a file that a killed one leaves. Touches `endpoint.json`.
"""

from __future__ import annotations

import json
import os
import ssl
from enum import IntEnum

from coordinator.run.folder import RunFolder
from coordinator.run.lock import lock_holder
from protocol.bootstrap import fetch_ca
from protocol.errors import Unauthenticated, Unavailable
from protocol.hosts import reached_at
from protocol.private_files import write_private

REACH_TIMEOUT_S = 5.0
"""For one TLS handshake with the same machine; it takes a few milliseconds."""


class CoordinatorStopped(Unavailable):
    """Nobody serves the run."""


class _Found(IntEnum):
    """What was on an address, the more telling the higher."""

    NOBODY = 0
    SILENCE = 1
    STRANGER = 2


def write_endpoint(folder: RunFolder, host: str, port: int) -> None:
    """Say where this process listens: `host` as it stands in the settings."""
    endpoint = {"host": host, "port": port, "pid": os.getpid()}
    write_private(folder.endpoint_path, json.dumps(endpoint).encode())


def last_port(folder: RunFolder) -> int:
    """The port of the latest start: workers come back to it. 0 where there was none."""
    endpoint = _endpoint(folder)
    return 0 if endpoint is None else endpoint[1]


def reach(folder: RunFolder, fingerprint: str, timeout_s: float = REACH_TIMEOUT_S) -> tuple[str, int]:
    """Host and port at which the coordinator with this CA answers; blocks for up to twice `timeout_s`.

    Raises CoordinatorStopped where nobody serves the run, and Unavailable where somebody does and cannot be reached.
    """
    endpoint = _endpoint(folder)
    if endpoint is None:
        raise _trouble(folder, _Found.NOBODY, "", 0)
    listening, port = endpoint
    found = []
    for host in reached_at(listening):
        try:
            fetch_ca(host, port, fingerprint, timeout_s)
        except Unauthenticated:
            found.append((_Found.STRANGER, host))
        except Unavailable as error:
            found.append((_meaning(error), host))
        else:
            return host, port
    kind, host = max(found, key=lambda one: one[0])  # the first of the most telling
    raise _trouble(folder, kind, host, port)


def _endpoint(folder: RunFolder) -> tuple[str, int] | None:
    """Host that was listened on, and port; None where nothing (or nothing sensible) was written yet."""
    try:
        endpoint = json.loads(folder.endpoint_path.read_bytes())
        return str(endpoint["host"]), int(endpoint["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _meaning(error: Unavailable) -> _Found:
    """`fetch_ca` names what went wrong as the cause."""
    if isinstance(error.__cause__, TimeoutError):
        return _Found.SILENCE
    if isinstance(error.__cause__, ssl.SSLError | ConnectionResetError | BrokenPipeError):
        return _Found.STRANGER
    return _Found.NOBODY


def _trouble(folder: RunFolder, found: _Found, host: str, port: int) -> Unavailable:
    start = f"`barnraise coordinator run {folder.root}`"
    holder = lock_holder(folder.root)
    if holder is None:
        if found is _Found.NOBODY:
            return CoordinatorStopped(f"the coordinator of {folder.root} is not running; start it with {start}")
        return CoordinatorStopped(
            f"the coordinator of {folder.root} is not running, and another program has its port {port} by now: end "
            f"that one, or set another port in settings.toml, then start it with {start}"
        )
    serves = f"process {holder} serves {folder.root}"
    if not port:
        return Unavailable(f"{serves} but does not listen yet: it is starting; try again in a moment")
    if found is _Found.SILENCE:
        return Unavailable(
            f"{serves} but does not answer on {host} port {port}: it has too much to do, or hangs. Try again; if that "
            f"stays so, end process {holder} and start it anew with {start}: nothing that was accepted is lost"
        )
    there = "another program answers" if found is _Found.STRANGER else "nobody listens"
    return Unavailable(
        f"{serves}, but {there} on {host} port {port}: it is starting or stopping, so try again in a moment; or it "
        "runs where that address is another one, in a container say: give this command there"
    )
