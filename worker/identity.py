"""A volunteer's keys: taken along to another machine, replaced by new ones, given up.

Decides what an exported file holds: for each run its key, its enrolment, and where its coordinator answered. Holds
always: a key is in no file in the clear but its own; no key is overwritten by another; nothing is done beside a worker
that uses the key; a replacement that was interrupted is finished by asking for it again. Reads and writes the home.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError
from protocol.identity import PrivateIdentity
from protocol.private_files import read_private, write_private
from protocol.sealed import opened, sealed
from worker.belongings import IDENTITY_FILE, LEFT_FILE, REVOKED_FILE, RunPlace, folder_of, place_of
from worker.disk import private_folder, worker_lock
from worker.rejoin import ADDRESS_FILE, ENROLMENT_FILE, KnownRun, home_root, known_runs

if TYPE_CHECKING:
    from worker.client import CoordinatorClient

NEXT_IDENTITY_FILE = "identity-next.pem"
"""The key that takes the present one's place once the coordinator has said so."""
_TAKEN_ALONG = (IDENTITY_FILE, ENROLMENT_FILE, ADDRESS_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOfRun:
    """A key, and the run that knows it."""

    run_id: str
    run_name: str
    fingerprint: str
    worker: str
    """The run's name for it: the digest of the first key that it had there."""
    public_key: str
    """In hexadecimal."""


def keys(home: Path | None, run: str = "") -> list[KeyOfRun]:
    """Of all runs that this machine is enrolled in, or of the one that `run` means."""
    root = home_root(home)
    only = place_of(run, home).link.fingerprint if run else ""
    return [_described(root, one) for one in known_runs(root) if only in ("", one.fingerprint)]


def exported(home: Path | None, passphrase: str, run: str = "") -> tuple[bytes, list[KeyOfRun]]:
    """A file with the keys of these runs, to be opened with the passphrase; and which keys those are."""
    root, found = home_root(home), keys(home, run)
    if not found:
        raise ConfigError("this machine is enrolled in no run, so there is no key to take along")
    runs = [{"fingerprint": one.fingerprint, "files": _files(folder_of(root, one.fingerprint))} for one in found]
    return sealed(json.dumps({"runs": runs}).encode(), passphrase), found


def imported(file: bytes, passphrase: str, home: Path | None) -> list[KeyOfRun]:
    """Put the keys of such a file into this home; ConfigError, and nothing done, where another key is there."""
    root = home_root(home)
    found = _read(opened(file, passphrase))
    for fingerprint, files in found.items():
        there = folder_of(root, fingerprint) / IDENTITY_FILE
        if there.exists() and read_private(there) != files[IDENTITY_FILE]:
            raise ConfigError(
                f"{there} is another key of that run, which may have earned something: take it along first "
                "(`barnraise worker identity export`), then remove its folder, or import into another --home"
            )
    for fingerprint, files in found.items():
        folder = private_folder(folder_of(root, fingerprint))
        with _alone(folder):
            for name, content in files.items():
                write_private(folder / name, content)
    return [one for one in keys(home) if one.fingerprint in found]


async def rotated(home: Path | None, run: str = "") -> KeyOfRun:
    """A new key in place of the present one, at the coordinator and here; all that the worker has stays its own."""
    place = place_of(run, home)
    with _alone(place.folder):
        following = place.folder / NEXT_IDENTITY_FILE
        if not following.exists():
            PrivateIdentity.generate().save(following)
        new = PrivateIdentity.load(following)
        await _asked(place, lambda client: client.rotate_key(new))
        following.replace(place.folder / IDENTITY_FILE)
    return _described(home_root(home), _known(home, place))


async def left(home: Path | None, run: str = "", *, forget: bool = False, revoke: bool = False) -> KeyOfRun:
    """Tell the coordinator that this machine takes part no more; what it earned stays.

    `forget`: it erases the name, team, owner and address range that it has. `revoke`: it never takes this key again.
    """
    place = place_of(run, home)
    gone = _described(home_root(home), _known(home, place))
    with _alone(place.folder):
        await _asked(place, lambda client: client.leave(forget=forget, revoke=revoke))
        (place.folder / ENROLMENT_FILE).replace(place.folder / LEFT_FILE)
        if revoke:
            (place.folder / IDENTITY_FILE).replace(place.folder / REVOKED_FILE)
            (place.folder / LEFT_FILE).unlink()  # the next key is somebody new
    return gone


async def _asked(place: RunPlace, ask: Callable[[CoordinatorClient], Coroutine[Any, Any, object]]) -> None:
    from worker.client import CoordinatorClient

    enrolment = json.loads(read_private(place.folder / ENROLMENT_FILE))
    client = CoordinatorClient(place.link, PrivateIdentity.load(place.folder / IDENTITY_FILE))
    client.connect(str(enrolment["ca_pem"]).encode())
    try:
        await ask(client)
    finally:
        await client.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no worker uses the folder; ConfigError where one does."""
    lock = worker_lock(folder / "lock")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _known(home: Path | None, place: RunPlace) -> KnownRun:
    return next(one for one in known_runs(home_root(home)) if one.fingerprint == place.link.fingerprint)


def _described(root: Path, run: KnownRun) -> KeyOfRun:
    folder = folder_of(root, run.fingerprint)
    enrolment = json.loads(read_private(folder / ENROLMENT_FILE))
    return KeyOfRun(
        run_id=run.run_id,
        run_name=run.address.run_name if run.address else "",
        fingerprint=run.fingerprint,
        worker=str(enrolment["worker_id"]),
        public_key=PrivateIdentity.load(folder / IDENTITY_FILE).public_key.hex(),
    )


def _files(folder: Path) -> dict[str, str]:
    with _alone(folder):
        return {name: read_private(folder / name).decode() for name in _TAKEN_ALONG if (folder / name).exists()}


def _read(content: bytes) -> dict[str, dict[str, bytes]]:
    """Fingerprint to files; ConfigError where it is not what `exported` made: it may have been made by anybody."""
    found: dict[str, dict[str, bytes]] = {}
    try:
        for one in json.loads(content)["runs"]:
            fingerprint, files = str(one["fingerprint"]), dict(one["files"])
            if len(fingerprint) != 64 or int(fingerprint, 16) < 0 or not set(files) <= set(_TAKEN_ALONG):
                raise ValueError("of other files")
            found[fingerprint] = {name: str(text).encode() for name, text in files.items()}
            PrivateIdentity.from_pem(found[fingerprint][IDENTITY_FILE], Path(IDENTITY_FILE))
            found[fingerprint][ENROLMENT_FILE]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError("what the file holds is not what `barnraise worker identity export` writes") from error
    return found


def plain(found: Sequence[KeyOfRun]) -> list[dict[str, str]]:
    """For JSON."""
    return [asdict(one) for one in found]
