"""Which machine leads the run: a worker goes with the highest epoch that it ever heard of, and back to no lower one.

Decides that alone; touches one small file of the run's folder. A coordinator of a lower epoch is refused as one that
does not answer: its machine led the run once, came back, and does not know yet that another one does.
"""

from __future__ import annotations

import contextlib

from protocol.causes import Cause
from protocol.errors import StorageTrouble, Unavailable
from worker.home import RunHome

EPOCH_FILE = "epoch"


def require_latest(home: RunHome, epoch: int) -> None:
    """Unavailable where a session of `epoch` is one of a coordinator that leads no more."""
    try:
        known = int(home.kept(EPOCH_FILE) or b"0")
    except ValueError:
        known = 0
    if epoch < known:
        said = f"this coordinator is of epoch {epoch}, and epoch {known} was begun on another machine"
        raise Unavailable(said, cause=Cause.FENCED)
    if epoch > known:
        with contextlib.suppress(StorageTrouble):  # a full disk: the next session says it again
            home.keep(EPOCH_FILE, str(epoch).encode())
