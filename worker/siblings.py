"""The workers of one machine, a GPU each: where each is at home, and how the first one's key lets the others in.

Decides folders: the first worker has the machine's home, with the volunteer's rules; the others lie below it, each with
a key, an enrolment, a cache and an outbox of its own. Holds always: an invite is spent once, by the first. Reads the
first one's key, and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError
from protocol.identity import PrivateIdentity
from protocol.siblings import vouch_for_sibling
from protocol.v1 import barnraise_pb2 as pb
from worker.belongings import IDENTITY_FILE, RunPlace, folder_of
from worker.rejoin import home_root, link_of

GPUS: Final = "gpus"
_DEVICE: Final = re.compile(r"[a-z]{1,8}(:[0-9]{1,3})?")


def sibling_home(root: Path, device: str) -> Path:
    """Where the worker of another GPU keeps what is its own."""
    return root / GPUS / device.replace(":", "-")


def is_device(name: str) -> bool:
    """Whether it is a device's plain name, as cuda:1: no other has a home, whoever names it."""
    return _DEVICE.fullmatch(name) is not None


def homes_of(root: Path) -> list[Path]:
    """Of all workers that this machine's home has, the first one's first."""
    return list(homes_by_gpu(root).values())


def homes_by_gpu(root: Path) -> dict[str, Path]:
    """The same, under their devices; the first one's under none."""
    found = {folder.name.replace("-", ":"): folder for folder in sorted(root.glob(f"{GPUS}/*"))}
    return {"": root} | {gpu: folder for gpu, folder in found.items() if is_device(gpu) and folder.is_dir()}


def home_of(root: Path, gpu: str) -> Path:
    """The home of the worker of `gpu`, as `homes_by_gpu` names it."""
    return sibling_home(root, gpu) if gpu else root


def places_of(run: str, home: Path | None) -> list[RunPlace]:
    """Where each worker of this machine keeps what it has of the run that `run` means, as for `join`.

    ConfigError where none of them is in such a run.
    """
    homes = homes_by_gpu(home_root(home))
    link = link_of(run, *homes.values())
    folders = {gpu: folder_of(root, link.fingerprint) for gpu, root in homes.items()}
    places = [RunPlace(gpu=gpu, folder=folder, link=link) for gpu, folder in folders.items() if folder.is_dir()]
    if not places:
        raise ConfigError("this machine is not enrolled in that run")
    return places


def run_folders(root: Path) -> list[Path]:
    """Of all of them, for each run that they are in."""
    return [folder for home in homes_of(root) for folder in sorted(home.glob("runs/*"))]


def vouch(request: pb.EnrolRequest, first_root: Path, fingerprint: str) -> None:
    """Put into `request` that the first worker of this machine knows the key; ConfigError where that has none."""
    first = PrivateIdentity.load(folder_of(first_root, fingerprint) / IDENTITY_FILE)
    request.sibling_of = first.public_key
    request.sibling_signature = vouch_for_sibling(first, request.public_key, bytes.fromhex(fingerprint))
