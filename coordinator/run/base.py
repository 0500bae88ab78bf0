"""What a follower begins with: the whole run at one moment between two commits, to be fetched file by file.

Decides which files these are: those of a backup (`backup.py`), under their digests. Content-addressed ones are pinned
where they lie, the journal and the other databases are copied; nothing else is. Touches a hidden folder inside the
run's, which is gone with the base.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from coordinator.run.backup import PLAIN_FILES, copy_database, plain_files, take_state
from coordinator.run.seats import SEAT_FILE
from coordinator.store.journal import Journal
from protocol.ids import Digest, stream_digest

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

BASE_FOLDER = ".base-"
_NOT_FOR_A_FOLLOWER = frozenset({SEAT_FILE, "secret/standby.json", "p2p/sidecar.json"})
"""Each machine has a seat and processes of its own; and whoever follows admits nobody yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedFile:
    """One file of the run as it is given."""

    name: str
    """Its place in the run's folder, with `/`."""
    digest: Digest
    size_bytes: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBase:
    """A run at the commit `position`."""

    position: int
    chain: bytes
    files: tuple[OfferedFile, ...]
    pins: contextlib.ExitStack


def take_base(run: RunFolder) -> RunBase:
    """The run as it is now; its files can be opened until its `pins` are closed. Blocks."""
    with contextlib.ExitStack() as pins:
        position, chain, files = _taken(run, pins)
        return RunBase(position=position, chain=chain, files=files, pins=pins.pop_all())


def _taken(run: RunFolder, kept: contextlib.ExitStack) -> tuple[int, bytes, tuple[OfferedFile, ...]]:
    building = Path(tempfile.mkdtemp(prefix=BASE_FOLDER, dir=run.root))
    kept.callback(shutil.rmtree, building, ignore_errors=True)
    position, _, blobs = take_state(run, building, kept)
    copy = Journal.open(building / run.journal_path.name)
    chain = copy.chain
    copy.close()
    for database in (run.registry_path, run.audit_path, run.credit_path):
        if database.is_file():
            copy_database(database, building / database.name)
    openers = dict(blobs)
    for path in sorted(building.iterdir()):
        openers[path.name] = _opener(path)
    for name, path in plain_files(run.root).items():
        if name not in _NOT_FOR_A_FOLLOWER:
            # small ones that may be replaced before they are fetched are given as they are now
            openers[name] = partial(io.BytesIO, path.read_bytes()) if name in PLAIN_FILES else _opener(path)
    return position, chain, tuple(_offered(name, opener) for name, opener in openers.items())


def clear_bases(root: Path) -> None:
    """Remove what a killed process left of one."""
    for path in root.glob(f"{BASE_FOLDER}*"):
        shutil.rmtree(path, ignore_errors=True)


def _offered(name: str, opener: Callable[[], BinaryIO]) -> OfferedFile:
    with opener() as file:
        digest = Digest(Path(name).name) if name.startswith("artifacts/") else stream_digest(file)
        size = file.seek(0, 2)
    return OfferedFile(name=name, digest=digest, size_bytes=size, open=opener)


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")
