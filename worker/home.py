"""Where a worker keeps what must outlive it: for each run a key, an enrolment, an outbox and downloaded blocks.

Decides which folder belongs to which run: the one named by the coordinator's CA fingerprint, so that two coordinators
can never get at each other's files, and no two runs see the same key. Touches the home folder only.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import ConfigError, RemoteError
from protocol.identity import PrivateIdentity
from protocol.ids import RunId, WorkerId
from protocol.joinlink import JoinLink
from protocol.private_files import write_private
from protocol.tls import fingerprint_of, manifest_key_message, verify_vouch
from worker.allowance import DiskAllowance
from worker.blocks import BlockCache
from worker.disk import private_folder, worker_lock
from worker.outbox import Outbox
from worker.rejoin import ENROLMENT_FILE, Address, home_root, remember_address
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

    def __init__(self, folder: Path, fingerprint: str, disk_bytes: int | None = None) -> None:
        self.folder = private_folder(folder)
        self._fingerprint = fingerprint
        self._lock = worker_lock(self.folder / "lock")
        self.outbox = Outbox(self.folder / "outbox")
        self.progress = LeaseStates(self.folder / "progress")
        self.disk = DiskAllowance(self.folder, BlockCache(self.folder / "blocks"), self.progress, disk_bytes)

    def lock(self) -> None:
        """Keep other workers out; ConfigError when one is in."""
        self._lock.acquire()

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()

    def identity(self) -> PrivateIdentity:
        """This worker's key for this run, made on first use."""
        path = self.folder / "identity.pem"
        if path.exists():
            return PrivateIdentity.load(path)
        identity = PrivateIdentity.generate()
        identity.save(path)
        return identity

    def enrolment(self) -> Enrolment | None:
        """The enrolment, checked against the fingerprint; None where there is none, or what is there does not hold."""
        path = self.folder / ENROLMENT_FILE
        if not path.exists():
            return None
        try:
            enrolment = Enrolment.model_validate_json(path.read_bytes())
            enrolment.check(self._fingerprint)
        except (ValidationError, ValueError, RemoteError, ConfigError):
            return None  # enrolling again is idempotent for the same key
        return enrolment

    def save_enrolment(self, enrolment: Enrolment) -> None:
        """Remember the enrolment."""
        write_private(self.folder / ENROLMENT_FILE, enrolment.model_dump_json().encode())

    def remember_address(self, link: JoinLink, run_name: str = "") -> None:
        """Write down where the coordinator answered: the way back, without the invite."""
        remember_address(self.folder, Address(host=link.host, port=link.port, run_name=run_name))


def open_home(home: Path | None, fingerprint: str, disk_bytes: int | None = None) -> RunHome:
    """The folder for the run behind `fingerprint`, under `home` or the platform's place for user data."""
    return RunHome(home_root(home) / "runs" / fingerprint[:32], fingerprint, disk_bytes)
