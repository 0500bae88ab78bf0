"""The workers of one machine, a GPU each: where each is at home, and how the first one's key lets the others in.

Decides folders: the first worker has the machine's home, with the volunteer's rules; the others lie below it, each with
a key, an enrolment, a cache and an outbox of its own. Holds always: an invite is spent once, by the first. Reads the
first one's key, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protocol.identity import PrivateIdentity
from protocol.siblings import vouch_for_sibling
from protocol.v1 import barnraise_pb2 as pb
from worker.belongings import IDENTITY_FILE, folder_of

GPUS: Final = "gpus"


def sibling_home(root: Path, device: str) -> Path:
    """Where the worker of another GPU keeps what is its own."""
    return root / GPUS / device.replace(":", "-")


def homes_of(root: Path) -> list[Path]:
    """Of all workers that this machine's home has, the first one's first."""
    return [root, *sorted(root.glob(f"{GPUS}/*"))]


def run_folders(root: Path) -> list[Path]:
    """Of all of them, for each run that they are in."""
    return [folder for home in homes_of(root) for folder in sorted(home.glob("runs/*"))]


def vouch(request: pb.EnrolRequest, first_root: Path, fingerprint: str) -> None:
    """Put into `request` that the first worker of this machine knows the key; ConfigError where that has none."""
    first = PrivateIdentity.load(folder_of(first_root, fingerprint) / IDENTITY_FILE)
    request.sibling_of = first.public_key
    request.sibling_signature = vouch_for_sibling(first, request.public_key, bytes.fromhex(fingerprint))
