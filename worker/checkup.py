"""What may keep a volunteer's machine from working, looked at one by one, each with how to mend it.

Decides what is good, what should be known, and what keeps the worker from training. Looks at Python, the installation,
memory, disk, the clock, the rules, the GPU, and the way to each run: its name, its port, whose certificate answers, and
whether a proxy stands in between. Sends nothing but a TLS greeting to runs that were joined, or that are named.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from protocol.bootstrap import fetch_ca
from protocol.errors import ConfigError, RemoteError, Unauthenticated
from protocol.joinlink import JoinLink
from protocol.text import human_bytes
from worker.machine.cgroups import group_limits
from worker.rejoin import ENROLMENT_FILE
from worker.rules.file import RULES_FILE, read_rules
from worker.rules.judging import needed
from worker.senses.sense import Senses

LEAST_PYTHON: Final = (3, 11)
LITTLE_MEMORY: Final = 2 << 30
LEAST_MEMORY: Final = 1 << 30
"""Python and its libraries take half of it."""
LITTLE_DISK: Final = 5 << 30
LEAST_DISK: Final = 500 << 20
ANSWER_S: Final = 5.0
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "grpc_proxy")


class Soundness(StrEnum):
    """Of one check."""

    GOOD = "good"
    NOTE = "note"
    """It works, and somebody should know."""
    BAD = "bad"
    """It keeps the worker from training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    outcome: Soundness
    found: str
    mend: str = ""
    """What to do; empty where nothing needs doing."""


def of_python(version: tuple[int, int] = sys.version_info[:2], *, release: str = sys.version.split()[0]) -> Finding:
    """The interpreter."""
    if version >= LEAST_PYTHON:
        return Finding(name="Python", outcome=Soundness.GOOD, found=release)
    least = ".".join(map(str, LEAST_PYTHON))
    mend = f"install Python {least} or newer, and barnraise in it: `pipx install --python python{least} barnraise`"
    return Finding(name="Python", outcome=Soundness.BAD, found=f"{release}, which is too old", mend=mend)


def of_packages(version_of: Callable[[str], str] = metadata.version) -> Finding:
    """What has to be installed beside it."""
    missing = []
    for package in ("torch", "transformers", "grpcio", "protobuf", "cryptography", "psutil"):
        try:
            version_of(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        found = f"{', '.join(missing)} not installed"
        mend = f"install barnraise anew: `{sys.executable} -m pip install --force-reinstall barnraise`"
        return Finding(name="packages", outcome=Soundness.BAD, found=found, mend=mend)
    return Finding(name="packages", outcome=Soundness.GOOD, found=f"torch {version_of('torch')}")


def of_memory(available_bytes: int) -> Finding:
    """What is free, of the machine or of its container."""
    found = f"{human_bytes(available_bytes)} free"
    if available_bytes >= LITTLE_MEMORY:
        return Finding(name="memory", outcome=Soundness.GOOD, found=found)
    outcome = Soundness.NOTE if available_bytes >= LEAST_MEMORY else Soundness.BAD
    mend = "close other programs, or give the container more memory; `barnraise worker probe` shows what is offered"
    return Finding(name="memory", outcome=outcome, found=found, mend=mend)


def of_disk(home: Path, free_bytes: int | None, trouble: str = "") -> Finding:
    """The disk with the worker's home. `trouble`: why nothing can be written there."""
    if trouble or free_bytes is None:
        found = f"{home} cannot be written: {trouble or 'it is not there'}"
        mend = "make it yours (`chown`), or choose another place with --home FOLDER"
        return Finding(name="disk", outcome=Soundness.BAD, found=found, mend=mend)
    found = f"{human_bytes(free_bytes)} free for {home}"
    if free_bytes >= LITTLE_DISK:
        return Finding(name="disk", outcome=Soundness.GOOD, found=found)
    outcome = Soundness.NOTE if free_bytes >= LEAST_DISK else Soundness.BAD
    mend = "make room, or choose another disk with --home FOLDER; `barnraise worker set disk.most 2GB` caps the cache"
    return Finding(name="disk", outcome=outcome, found=found, mend=mend)


def of_clock(now_s: float, known_s: float) -> Finding:
    """The wall clock, against a moment that is over for sure: when this machine last wrote something of ours."""
    shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(now_s))
    if now_s >= known_s - 3600.0:
        return Finding(name="clock", outcome=Soundness.GOOD, found=shown)
    mend = "set it, best by the network: `sudo timedatectl set-ntp true`; schedules and certificates go by it"
    return Finding(name="clock", outcome=Soundness.BAD, found=f"{shown}, which was long ago", mend=mend)


def of_rules(home: Path, senses: Senses) -> Iterator[Finding]:
    """Whether the rules make sense, and can be checked here."""
    try:
        rules = read_rules(home / RULES_FILE)
    except ConfigError as error:
        mend = f"edit {home / RULES_FILE}, or delete it to begin anew"
        yield Finding(name="rules", outcome=Soundness.BAD, found=str(error), mend=mend)
        return
    look = senses.look(needed(rules))
    lacking, source = look.lacking, look.facts.get("idle_source")
    for why in dict.fromkeys(lacking.values()):
        waits = rules.when.unknown == "wait"
        mend = "take the rule back, or `barnraise worker set when.unknown work` to work all the same"
        found = f"a rule does not work here: {why}"
        yield Finding(name="rules", outcome=Soundness.BAD if waits else Soundness.NOTE, found=found, mend=mend)
    if not lacking:
        tells = f"; {source} tells when keyboard and mouse were used" if source else ""
        yield Finding(name="rules", outcome=Soundness.GOOD, found=f"make sense, and can be checked here{tells}")


def of_gpu() -> Finding:
    """As the worker chooses it; imports torch."""
    from worker.machine.gpu_facts import gather_gpu_facts
    from worker.machine.gpus import choose_gpu

    facts = gather_gpu_facts()
    choice = choose_gpu(facts, None)
    if choice.index is not None:
        driver = f", driver {facts.driver}" if facts.driver else ""
        found = f"{facts.trials[choice.index].name}{driver}"
        outcome = Soundness.NOTE if choice.notice else Soundness.GOOD
        return Finding(name="GPU", outcome=outcome, found=found, mend=choice.notice)
    if choice.notice:
        return Finding(name="GPU", outcome=Soundness.NOTE, found="not used; the CPU trains", mend=choice.notice)
    return Finding(name="GPU", outcome=Soundness.GOOD, found="none; the CPU trains")


def of_run(
    link: JoinLink,
    environment: Mapping[str, str],
    *,
    resolve: Callable[[str, int], object] = socket.getaddrinfo,
    greet: Callable[[str, int, str, float], bytes] = fetch_ca,
) -> Iterator[Finding]:
    """The way to one run: its name, and who answers there."""
    try:
        resolve(link.host, link.port)
    except OSError:
        mend = "is this machine online, and is the name spelt as in the join link? If both: ask the run's operator"
        found = f"the name {link.host} cannot be looked up"
        yield Finding(name="name", outcome=Soundness.BAD, found=found, mend=mend)
        return
    yield Finding(name="name", outcome=Soundness.GOOD, found=link.host)
    proxy = next((name for name in _PROXIES if environment.get(name)), "")
    try:
        greet(link.host, link.port, link.fingerprint, ANSWER_S)
    except Unauthenticated:
        found = f"somebody answers at {link.address} who is not this run's coordinator"
        mend = "a proxy or a firewall that opens TLS, or another program at that port: ask the run's operator"
        yield Finding(name="run", outcome=Soundness.BAD, found=found, mend=mend)
        return
    except (RemoteError, OSError):
        where = f"; {proxy} is set, and is not used: workers dial directly" if proxy else ""
        mend = f"is the coordinator running, and does a firewall let TCP to port {link.port} out?{where}"
        found = f"nobody answers at {link.address}"
        yield Finding(name="run", outcome=Soundness.BAD, found=found, mend=mend)
        return
    yield Finding(name="run", outcome=Soundness.GOOD, found=f"the coordinator at {link.address} answers")
    if proxy:
        mend = "nothing, as long as the run answers"
        yield Finding(name="proxy", outcome=Soundness.NOTE, found=f"{proxy} is set, and is not used", mend=mend)


def checkup(home: Path, links: list[JoinLink], senses: Senses) -> Iterator[Finding]:
    """Everything, one finding after another, the quick ones first."""
    yield of_python()
    yield of_packages()
    left = group_limits().memory_bytes
    available = psutil.virtual_memory().available
    yield of_memory(available if left is None else min(available, left))
    yield of_disk(home, *_writable(home))
    written = (path for path in (*home.glob(f"runs/*/{ENROLMENT_FILE}"), Path(__file__)) if path.exists())
    yield of_clock(time.time(), max(path.stat().st_mtime for path in written))
    yield from of_rules(home, senses)
    for link in links:
        yield from of_run(link, os.environ)
    if not links:
        mend = "join one: `barnraise worker join 'barnraise://…'` with a link from its operator"
        yield Finding(name="run", outcome=Soundness.NOTE, found="this machine is in no run yet", mend=mend)
    yield of_gpu()


def _writable(home: Path) -> tuple[int | None, str]:
    """Bytes free where the home is, or will be, and why nothing can be written there."""
    place = next((folder for folder in (home, *home.absolute().parents) if folder.is_dir()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=place):
            return shutil.disk_usage(place).free, ""
    except OSError as error:
        return None, (error.strerror or "it takes no files").lower()
