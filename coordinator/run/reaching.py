"""Where a run's coordinator listens, as its folder says, and in words why nobody takes the operator's orders.

Decides whether a coordinator lives: by the run folder's lock, which ends with its process, not by a process number or
a file that a killed one leaves. Touches `endpoint.json`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from coordinator.run.folder import RunFolder
from coordinator.run.lock import lock_holder
from protocol.errors import Unavailable
from protocol.private_files import write_private


class CoordinatorStopped(Unavailable):
    """Nobody serves the run."""


def control_path(folder: RunFolder) -> Path:
    """The socket at which the coordinator takes the operator's orders, while it runs."""
    return folder.root / "control" / "coordinator.sock"


def write_endpoint(folder: RunFolder, host: str, port: int) -> None:
    """Say where this process listens: `host` as it stands in the settings."""
    endpoint = {"host": host, "port": port, "pid": os.getpid()}
    write_private(folder.endpoint_path, json.dumps(endpoint).encode())


def last_port(folder: RunFolder) -> int:
    """The port of the latest start: workers come back to it. 0 where there was none."""
    endpoint = _endpoint(folder)
    return 0 if endpoint is None else endpoint[1]


def last_process(folder: RunFolder) -> int:
    """The number of the process that listened last, or does. 0 where there was none."""
    try:
        return int(json.loads(folder.endpoint_path.read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def unreached(folder: RunFolder) -> Unavailable:
    """Why nobody takes orders at the run folder's socket: CoordinatorStopped where nobody serves the run."""
    start = f"`barnraise coordinator run {folder.root}`"
    holder = lock_holder(folder.root)
    if holder is None:
        return CoordinatorStopped(f"the coordinator of {folder.root} is not running; start it with {start}")
    return Unavailable(
        f"process {holder} serves {folder.root} but takes no orders: it is starting or stopping, so try again in a "
        "moment; or it runs on another machine that shares this folder: give this command there"
    )


def _endpoint(folder: RunFolder) -> tuple[str, int] | None:
    """Host that was listened on, and port; None where nothing (or nothing sensible) was written yet."""
    try:
        endpoint = json.loads(folder.endpoint_path.read_bytes())
        return str(endpoint["host"]), int(endpoint["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
