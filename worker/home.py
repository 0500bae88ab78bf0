"""Where a worker keeps what must outlive it: for each run a key, an enrolment, an outbox and downloaded blocks.

Decides which folder belongs to which run: the one named by the coordinator's CA fingerprint, so that two coordinators
can never get at each other's files, and no two runs see the same key. Touches the home folder only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import ConfigError, RemoteError
from protocol.identity import PrivateIdentity
from protocol.ids import RunId, WorkerId
from protocol.joinlink import JoinLink
from protocol.tls import fingerprint_of, manifest_key_message, verify_vouch
from worker.allowance import DiskAllowance
from worker.belongings import IDENTITY_FILE, LEFT_FILE, folder_of
from worker.blocks import BlockCache
from worker.disk import worker_lock
from worker.files import DISK, Files
from worker.outbox import Outbox
from worker.ports import LeaseProgress
from worker.rejoin import ADDRESS_FILE, ENROLMENT_FILE, Address, address_from, home_root
from worker.train.lease_state import LeaseStates


class Enrolment(BaseModel):
    """What enrolling once gave, for good. Keys and certificates as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_id: WorkerId
    run_id: RunId
    ca_pem: str
    manifest_public_key_hex: str
    manifest_key_vouch_hex: str
    trusted: bool

    @property
    def manifest_public_key(self) -> bytes:
        """The Ed25519 key whose signature makes a manifest."""
        return bytes.fromhex(self.manifest_public_key_hex)

    def check(self, fingerprint: str) -> None:
        """RemoteError unless the CA with `fingerprint` vouches for the manifest key of this run."""
        ca_pem = self.ca_pem.encode()
        if fingerprint_of(ca_pem) != fingerprint:
            raise ConfigError("the stored certificate is not the one that the join link names")
        vouched = manifest_key_message(self.run_id, self.manifest_public_key)
        verify_vouch(ca_pem, vouched, bytes.fromhex(self.manifest_key_vouch_hex))


class RunHome:
    """One run's folder."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        progress: LeaseProgress,
        disk_bytes: int | None = None,
        *,
        files: Files = DISK,
        new_identity: Callable[[], PrivateIdentity] = PrivateIdentity.generate,
    ) -> None:
        files.make_folder(folder)
        self.folder, self.progress = folder, progress
        self._files, self._fingerprint, self._new_identity = files, fingerprint, new_identity
        self._lock = worker_lock(folder / "lock")
        self.outbox = Outbox(folder / "outbox", files)
        self.disk = DiskAllowance(folder, BlockCache(folder / "blocks", files), progress, disk_bytes, files)

    def lock(self) -> None:
        """Keep other workers out; ConfigError when one is in."""
        self._lock.acquire()

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()

    def identity(self) -> PrivateIdentity:
        """This worker's key for this run, made on first use."""
        path = self.folder / IDENTITY_FILE
        kept = self.kept(IDENTITY_FILE)
        if kept is not None:
            return PrivateIdentity.from_pem(kept, path)
        identity = self._new_identity()
        self._files.write(path, identity.to_pem())
        return identity

    def enrolment(self) -> Enrolment | None:
        """The enrolment, checked against the fingerprint; None where there is none, or what is there does not hold."""
        kept = self.kept(ENROLMENT_FILE)
        if kept is None:
            return None
        try:
            enrolment = Enrolment.model_validate_json(kept)
            enrolment.check(self._fingerprint)
        except (ValidationError, ValueError, RemoteError, ConfigError):
            return None  # enrolling again is idempotent for the same key
        return enrolment

    def former_worker(self) -> WorkerId | None:
        """Whom the run knew this machine as when it left: of a key, maybe, that the present one took the place of."""
        try:
            return Enrolment.model_validate_json(self.kept(LEFT_FILE) or b"").worker_id
        except ValidationError:
            return None

    def save_enrolment(self, enrolment: Enrolment) -> None:
        """Remember the enrolment."""
        self.keep(ENROLMENT_FILE, enrolment.model_dump_json().encode())

    def keep(self, name: str, content: bytes) -> None:
        """Write a small file of this run, durably."""
        self._files.write(self.folder / name, content)

    def add(self, name: str, piece: bytes) -> None:
        """Add to the end of a small file; whether that outlives a power loss, nobody knows."""
        self._files.append(self.folder / name, piece)

    def kept(self, name: str) -> bytes | None:
        """What `keep` wrote; None where it did not; ConfigError where it cannot be read."""
        try:
            return self._files.read(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read {self.folder / name}: {error.strerror or error}") from error

    def remember_address(self, link: JoinLink, run_name: str = "") -> None:
        """Write down where the coordinator answered, and where else it may be: the way back, without the invite."""
        address = Address.of(link, run_name)
        if address_from(self.kept(ADDRESS_FILE)) != address:
            self.keep(ADDRESS_FILE, address.to_json())


def open_home(home: Path | None, fingerprint: str, disk_bytes: int | None = None) -> RunHome:
    """The folder for the run behind `fingerprint`, under `home` or the platform's place for user data."""
    folder = folder_of(home_root(home), fingerprint)
    return RunHome(folder, fingerprint, LeaseStates(folder / "progress"), disk_bytes)
