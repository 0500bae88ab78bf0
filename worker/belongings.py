"""What of a run belongs to its volunteer and not to a worker process: the key, and the receipts.

Decides where they lie. Reads the home folder. Light: it needs neither torch nor gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError
from protocol.joinlink import JoinLink
from protocol.receipt_files import whole_lines

IDENTITY_FILE = "identity.pem"
LEFT_FILE = "enrolment-left.json"
"""The enrolment of a run that this machine has left: another invite lets it in again, as who it was."""
REVOKED_FILE = "identity-revoked.pem"
"""A key that no run takes any more, and whose receipts are still its owner's."""
RECEIPTS_FILE = "receipts.jsonl"
KEPT_FILE = "receipts-kept.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """One run's folder in the home of one of a machine's workers, and the way to its coordinator."""

    gpu: str
    """The worker's device, as in cuda:1; empty: the machine's first worker."""
    folder: Path
    link: JoinLink


def folder_of(root: Path, fingerprint: str) -> Path:
    """Where the run behind `fingerprint` lies."""
    return root / "runs" / fingerprint[:32]


def kept_receipts(place: RunPlace) -> bytes:
    """The file of receipts as it is; empty where there is none."""
    try:
        content = (place.folder / RECEIPTS_FILE).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"cannot read {place.folder / RECEIPTS_FILE}: {error.strerror or error}") from error
    return content if whole_lines(content) else b""
