"""A volunteer's keys: taken along to another machine, replaced by new ones, given up.

Decides what an exported file holds: for each run the keys of all workers of the machine, a GPU each, with their
enrolments, and where its coordinator answered. Holds always: what is done is done with each of these keys, whatever
becomes of another; a key is in no file in the clear but its own; no key is overwritten by another; nothing is done
beside a worker that uses the key; a replacement that was interrupted is finished by asking for it again. Reads and
writes the home.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import BarnraiseError, ConfigError, RemoteError
from protocol.identity import PrivateIdentity
from protocol.private_files import read_private, write_private
from protocol.sealed import MAX_SEALED_BYTES, opened, sealed
from worker.belongings import IDENTITY_FILE, LEFT_FILE, REVOKED_FILE, RunPlace, folder_of
from worker.disk import private_folder, worker_lock
from worker.rejoin import ADDRESS_FILE, ENROLMENT_FILE, KnownRun, home_root, known_runs, link_of
from worker.siblings import home_of, homes_by_gpu, is_device, places_of

if TYPE_CHECKING:
    from worker.client import CoordinatorClient

NEXT_IDENTITY_FILE = "identity-next.pem"
"""The key that takes the present one's place once the coordinator has said so."""
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_TAKEN_ALONG = (IDENTITY_FILE, ENROLMENT_FILE, ADDRESS_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOfRun:
    """A key, and the run that knows it."""

    gpu: str
    """The worker's device, as in cuda:1; empty: the machine's first worker."""
    run_id: str
    run_name: str
    fingerprint: str
    worker: str
    """The run's name for it: the digest of the first key that it had there."""
    public_key: str
    """In hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOutcome:
    """What became of one key."""

    key: KeyOfRun
    """As it is now; where it was not done or is gone, as it was."""
    error: BarnraiseError | OSError | None = None
    """Why it was not done."""

    @property
    def trouble(self) -> str:
        """The same in words; empty: it was done."""
        error = self.error
        return (error.strerror or str(error)) if isinstance(error, OSError) else str(error or "")


def keys(home: Path | None, run: str = "") -> list[KeyOfRun]:
    """Of all runs that this machine's workers are enrolled in, or of the one that `run` means."""
    homes = homes_by_gpu(home_root(home))
    only = link_of(run, *homes.values()).fingerprint if run else ""
    found = [(gpu, root, one) for gpu, root in homes.items() for one in known_runs(root)]
    described = [
        _described(gpu, folder_of(root, one.fingerprint), one)
        for gpu, root, one in found
        if only in ("", one.fingerprint)
    ]
    return sorted(described, key=lambda key: (key.run_name, key.run_id))


def exported(home: Path | None, passphrase: str, run: str = "") -> tuple[bytes, list[KeyOfRun]]:
    """A file with the keys of these runs, to be opened with the passphrase; and which keys those are."""
    root, found = home_root(home), keys(home, run)
    if not found:
        raise ConfigError("this machine is enrolled in no run, so there is no key to take along")
    held: dict[str, list[dict[str, Any]]] = {"": []}
    for one in found:
        files = _files(folder_of(home_of(root, one.gpu), one.fingerprint))
        held.setdefault(one.gpu, []).append({"fingerprint": one.fingerprint, "files": files})
    # The first worker's stand where they did before there were others, so that a release of then reads those.
    content = {"runs": held.pop("")} | ({"gpus": held} if held else {})
    file = sealed(json.dumps(content).encode(), passphrase)
    if len(file) > MAX_SEALED_BYTES:
        raise ConfigError(f"{len(found)} keys are too many for one file: take those of one run at a time, with --run")
    return file, found


def imported(file: bytes, passphrase: str, home: Path | None) -> list[KeyOfRun]:
    """Put the keys of such a file into this home, each of a GPU's worker below it again; ConfigError, and nothing
    done, where another key is there."""
    root = home_root(home)
    found = _read(opened(file, passphrase))
    folders = {place: folder_of(home_of(root, place[0]), place[1]) for place in found}
    for place, files in found.items():
        there = folders[place] / IDENTITY_FILE
        if there.exists() and read_private(there) != files[IDENTITY_FILE]:
            raise ConfigError(
                f"{there} is another key of that run, which may have earned something: take it along first "
                "(`barnraise worker identity export`), then remove its folder, or import into another --home"
            )
    for place, files in found.items():
        folder = private_folder(folders[place])
        with _alone(folder):
            for name, content in files.items():
                write_private(folder / name, content)
    return [one for one in keys(home) if (one.gpu, one.fingerprint) in found]


async def rotated(home: Path | None, run: str = "") -> list[KeyOutcome]:
    """New keys in place of the present ones, at the coordinator and here; all that the workers have stays theirs.

    ConfigError where no worker of this machine is in the run; what is in one key's way stands in its outcome.
    """
    return await _of_each(home, run, _rotate)


async def left(home: Path | None, run: str = "", *, forget: bool = False, revoke: bool = False) -> list[KeyOutcome]:
    """Tell the coordinator that this machine's workers take part no more; what they earned stays. As `rotated`.

    `forget`: it erases the name, team, owner and address range that it has. `revoke`: it never takes these keys again.
    """
    return await _of_each(home, run, partial(_leave, forget=forget, revoke=revoke))


async def _of_each(home: Path | None, run: str, act: Callable[[RunPlace], Awaitable[None]]) -> list[KeyOutcome]:
    """`act` on the keys of all workers that are in the run, one after another, whatever becomes of any."""
    outcomes = []
    roots = homes_by_gpu(home_root(home))
    for place in places_of(run, home):
        known = next((one for one in known_runs(roots[place.gpu]) if one.fingerprint == place.link.fingerprint), None)
        if known is None:
            continue
        key = KeyOfRun(
            gpu=place.gpu, run_id=known.run_id, run_name="", fingerprint=known.fingerprint, worker="", public_key=""
        )
        try:
            key = _described(place.gpu, place.folder, known)
            with _alone(place.folder):
                await act(place)
            if (place.folder / ENROLMENT_FILE).exists():
                key = _described(place.gpu, place.folder, known)
        except (BarnraiseError, OSError) as error:
            outcomes.append(KeyOutcome(key=key, error=error))
        else:
            outcomes.append(KeyOutcome(key=key))
    if not outcomes:
        raise ConfigError("this machine is not enrolled in that run")
    return outcomes


async def _rotate(place: RunPlace) -> None:
    following = place.folder / NEXT_IDENTITY_FILE
    if not following.exists():
        PrivateIdentity.generate().save(following)
    new = PrivateIdentity.load(following)
    await _asked(place, lambda client: client.rotate_key(new))
    following.replace(place.folder / IDENTITY_FILE)


async def _leave(place: RunPlace, *, forget: bool, revoke: bool) -> None:
    await _asked(place, lambda client: client.leave(forget=forget, revoke=revoke))
    (place.folder / ENROLMENT_FILE).replace(place.folder / LEFT_FILE)
    if revoke:
        (place.folder / IDENTITY_FILE).replace(place.folder / REVOKED_FILE)
        (place.folder / LEFT_FILE).unlink()  # the next key is somebody new


async def _asked(place: RunPlace, ask: Callable[[CoordinatorClient], Coroutine[Any, Any, object]]) -> None:
    from worker.client import CoordinatorClient
    from worker.sentences import in_words

    enrolment = json.loads(read_private(place.folder / ENROLMENT_FILE))
    client = CoordinatorClient(place.link, PrivateIdentity.load(place.folder / IDENTITY_FILE))
    client.connect(str(enrolment["ca_pem"]).encode())
    try:
        await ask(client)
    except RemoteError as error:
        raise in_words(error, place.link.address) from None
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


def _described(gpu: str, folder: Path, run: KnownRun) -> KeyOfRun:
    enrolment = json.loads(read_private(folder / ENROLMENT_FILE))
    return KeyOfRun(
        gpu=gpu,
        run_id=run.run_id,
        run_name=run.address.run_name if run.address else "",
        fingerprint=run.fingerprint,
        worker=str(enrolment["worker_id"]),
        public_key=PrivateIdentity.load(folder / IDENTITY_FILE).public_key.hex(),
    )


def _files(folder: Path) -> dict[str, str]:
    with _alone(folder):
        return {name: read_private(folder / name).decode() for name in _TAKEN_ALONG if (folder / name).exists()}


def _read(content: bytes) -> dict[tuple[str, str], dict[str, bytes]]:
    """GPU and fingerprint to files; ConfigError where it is not what `exported` made: it may have been made by anybody.

    What it names is a place: a device's plain name, a fingerprint, and files of ours, and nothing else.
    """
    found: dict[tuple[str, str], dict[str, bytes]] = {}
    try:
        held = json.loads(content)
        others = dict(held.get("gpus", {}))
        if not all(map(is_device, others)):
            raise ValueError("of something else than a GPU")
        for gpu, one in [(gpu, one) for gpu, runs in ({"": held["runs"]} | others).items() for one in runs]:
            fingerprint, files = str(one["fingerprint"]), dict(one["files"])
            if not _FINGERPRINT.fullmatch(fingerprint) or not set(files) <= set(_TAKEN_ALONG):
                raise ValueError("of other files")
            of_run = {name: str(text).encode() for name, text in files.items()}
            PrivateIdentity.from_pem(of_run[IDENTITY_FILE], Path(IDENTITY_FILE))
            of_run[ENROLMENT_FILE]
            found[gpu, fingerprint] = of_run
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError("what the file holds is not what `barnraise worker identity export` writes") from error
    return found


def plain(found: Sequence[KeyOfRun]) -> list[dict[str, str]]:
    """For JSON."""
    return [asdict(one) for one in found]
