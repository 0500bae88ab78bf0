"""What keeps volunteers from a run though its coordinator is well: names, port, clock, disk, certificate.

Decides what is trouble, what is worth a look, and what to do about each; `examine` gathers, the rest are pure. Always:
nothing is written, and nobody is asked but a resolver and the addresses that the run itself advertises; whoever does
not answer costs `ANSWER_S` at most. Touches the run folder, to read, and the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from coordinator.run.lock import lock_holder
from coordinator.run.reaching import last_port, last_process
from protocol.bootstrap import fetch_ca
from protocol.errors import RemoteError, Unauthenticated
from protocol.hosts import WILDCARDS, address_text, canonical_host, reached_at, split_port
from protocol.text import human_bytes

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder
    from coordinator.settings import RunSettings

ANSWER_S = 5.0
"""For a resolver and for a handshake: the slowest home lines take one second."""
SOON_DAYS = 30.0
"""Before its certificate ends, an operator hears of it."""
_BACK_S = 60.0
"""A clock behind the journal's newest record by more was set back."""
_TIME_ERROR = 5
"""What adjtimex(2) answers while nothing keeps the clock right."""
_DAY_S = 86_400.0
Found = TypeVar("Found")


class Concern(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    LOOK = "look"
    """May be meant so, or could not be told from here."""
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One thing that was looked at."""

    name: str
    concern: Concern
    told: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def examine(folder: RunFolder) -> list[Symptom]:
    """Everything that can be told from the coordinator's own machine, the likeliest trouble first."""
    settings, holder = folder.settings(), lock_holder(folder.root)
    port = settings.port if settings.port and holder is None else last_port(folder) or settings.port
    found = [_serving(folder, settings, holder, port)]
    for host, dialled in addresses(settings, port):
        found.append(name_found(host, _within(ANSWER_S, partial(_resolved, host))))
        if holder is not None and found[-1].concern is not Concern.TROUBLE:
            found.append(_reached(host, dialled, folder.authority().fingerprint))
    found += [advertised_found(settings), clock_found(_newest_record_s(folder), time.time(), _clock_is_kept())]
    total = folder.layout().total_bytes
    found.append(disk_found(shutil.disk_usage(folder.root).free, total))
    found.append(certificate_found(*_certificate_days(folder)))
    return found


def addresses(settings: RunSettings, port: int) -> list[tuple[str, int]]:
    """Every host and port under which volunteers are to reach the run."""
    split = [split_port(one) for one in settings.advertised_hosts]
    return [(canonical_host(host), own or port) for host, own in split] or [settings.join_address(port)]


def leading_nowhere(settings: RunSettings, seconds: float = 2.0) -> list[str]:
    """Of the names in join links those that no resolver here knows; one that does not answer in time knows all."""
    hosts = dict.fromkeys(host for host, _ in addresses(settings, settings.port or 1))
    return [host for host in hosts if _within(seconds, partial(_resolved, host)) == ()]


def name_found(host: str, resolved: tuple[str, ...] | None) -> Symptom:
    """`resolved`: its addresses; None: no answer in time."""
    if resolved is None:
        return Symptom(
            name=f"name {host}",
            concern=Concern.TROUBLE,
            told=f"no resolver answers for it within {ANSWER_S:g} s",
            advice="look at this machine's network, then try again",
        )
    if not resolved:
        return Symptom(
            name=f"name {host}",
            concern=Concern.TROUBLE,
            told="it leads nowhere from here, and join links name it",
            advice="enter it in your domain's zone, or set advertised_hosts in settings.toml, then restart",
        )
    return Symptom(name=f"name {host}", concern=Concern.OK, told=f"leads to {', '.join(resolved[:3])}")


def advertised_found(settings: RunSettings) -> Symptom:
    """Whether what links say goes with what is listened on."""
    first = settings.join_address(settings.port or 1)[0]
    listens, others = settings.host, [host for host, _ in addresses(settings, 1) if not _is_loopback(host)]
    if _is_loopback(first):
        return Symptom(
            name="join links",
            concern=Concern.LOOK,
            told=f"they say {first}: volunteers on this machine alone can join",
            advice='for others, set host = "0.0.0.0" and advertised_hosts = ["NAME"] in settings.toml, and restart',
        )
    if others and _is_loopback(listens):
        return Symptom(
            name="join links",
            concern=Concern.LOOK,
            told=f"they say {others[0]}, and the coordinator listens on {listens}, which only this machine reaches",
            advice='unless something forwards it, set host = "0.0.0.0" in settings.toml and restart',
        )
    return Symptom(name="join links", concern=Concern.OK, told=f"they say {first}; listening on {listens}")


def clock_found(newest_record_s: float, now_s: float, kept: bool | None) -> Symptom:
    """`kept`: whether the system says that something keeps its clock right; None: it says nothing."""
    if newest_record_s > now_s + _BACK_S:
        behind = f"{newest_record_s - now_s:.0f} s"
        return Symptom(
            name="clock",
            concern=Concern.TROUBLE,
            told=f"it is {behind} behind the journal's newest record: it was set back, or is wrong",
            advice="set it right; invites and appointments go by it",
        )
    if kept is False:
        return Symptom(
            name="clock",
            concern=Concern.LOOK,
            told="nothing keeps it right, as the system says",
            advice="turn on time synchronization (chrony or systemd-timesyncd), unless the machine's host does it",
        )
    said = "kept right by the system" if kept else "not behind the journal; whether it is kept right is not told here"
    return Symptom(name="clock", concern=Concern.OK, told=said)


def disk_found(free_bytes: int, model_bytes: int) -> Symptom:
    """A round writes a version and what was sent, each as large as the model at most, and at times a checkpoint."""
    told = f"{human_bytes(free_bytes)} free; a version in full takes {human_bytes(model_bytes)}"
    if free_bytes < 3 * model_bytes:
        return Symptom(
            name="disk",
            concern=Concern.TROUBLE,
            told=told,
            advice="make room: at three versions the next round may stall; it goes on by itself once there is room",
        )
    if free_bytes < 10 * model_bytes:
        return Symptom(name="disk", concern=Concern.LOOK, told=told, advice="ten versions' room is comfortable")
    return Symptom(name="disk", concern=Concern.OK, told=told)


def certificate_found(begun_days: float, left_days: float) -> Symptom:
    """Days since the shortest-lived certificate became valid, and until it ends."""
    name = "certificate"
    if left_days <= 0.0 or begun_days < 0.0:
        told = f"it ended {-left_days:.0f} days ago" if left_days <= 0.0 else "it is not valid yet: look at the clock"
        return Symptom(
            name=name,
            concern=Concern.TROUBLE,
            told=told,
            advice="no worker can connect; certificates live ten years, so look at the clock, else begin a new run",
        )
    concern = Concern.LOOK if left_days < SOON_DAYS else Concern.OK
    advice = (
        "it ends with the run's own authority: begin a new run from an export before" if left_days < SOON_DAYS else ""
    )
    return Symptom(name=name, concern=concern, told=f"valid for {left_days:.0f} days more", advice=advice)


def _serving(folder: RunFolder, settings: RunSettings, holder: str | None, port: int) -> Symptom:
    if holder is None:
        return Symptom(
            name="coordinator",
            concern=Concern.LOOK,
            told="it is not running, so its port was not tried",
            advice=f"`barnraise coordinator run {folder.root}`, then this again",
        )
    fingerprint = folder.authority().fingerprint
    for host in reached_at(canonical_host(settings.host)):
        if _answer(host, port, fingerprint) is None:
            listening = address_text(settings.host, port)
            return Symptom(name="coordinator", concern=Concern.OK, told=f"process {holder} listens on {listening}")
    if str(last_process(folder)) != holder:
        return Symptom(
            name="coordinator",
            concern=Concern.LOOK,
            told=f"process {holder} is starting, and does not listen yet",
            advice="try again in a moment; where it takes longer, `barnraise coordinator logs` may say why",
        )
    return Symptom(
        name="coordinator",
        concern=Concern.TROUBLE,
        told=f"process {holder} serves this run, and does not answer on port {port}",
        advice="it is stopping, or runs in a container or elsewhere: try again, or give this command there",
    )


def _reached(host: str, port: int, fingerprint: str) -> Symptom:
    name, why = f"port {address_text(host, port)}", _answer(host, port, fingerprint)
    if why is None:
        return Symptom(name=name, concern=Concern.OK, told="the coordinator answers there, from this machine")
    if isinstance(why, Unauthenticated):
        return Symptom(
            name=name,
            concern=Concern.TROUBLE,
            told="somebody else answers there: another coordinator, or a proxy that opens what passes through it",
            advice="forward the port to this machine as it is (TCP), without a proxy that ends TLS",
        )
    return Symptom(
        name=name,
        concern=Concern.TROUBLE,
        told="nobody answers there, tried from this machine",
        advice="open the port in the firewall and forward it in the router; some routers lead nothing back in, so try "
        "`barnraise worker join` from another network before you believe this",
    )


def _answer(host: str, port: int, fingerprint: str) -> RemoteError | None:
    """None where this run's coordinator answers."""
    try:
        fetch_ca(host, port, fingerprint, ANSWER_S)
    except RemoteError as error:
        return error
    return None


def _within(seconds: float, call: Callable[[], Found]) -> Found | None:
    """What `call` gives, None where it takes longer: a resolver cannot be interrupted."""
    found: list[Found] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _resolved(host: str) -> tuple[str, ...]:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(info[4][0]) for info in infos))


def _is_loopback(host: str) -> bool:
    if host in WILDCARDS:
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _newest_record_s(folder: RunFolder) -> float:
    """When the journal was last written, by the clock of that time."""
    journal = folder.journal_path
    files = [path for path in (journal, journal.with_name(f"{journal.name}-wal")) if path.is_file()]
    return max((path.stat().st_mtime for path in files if path.stat().st_size), default=0.0)


def _clock_is_kept() -> bool | None:
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # struct timex, modes 0: it only reads
        return None if state < 0 else state != _TIME_ERROR
    return None


def _certificate_days(folder: RunFolder) -> tuple[float, float]:
    from cryptography import x509

    chain = x509.load_pem_x509_certificates(folder.leaf()[0])
    now = datetime.fromtimestamp(time.time(), UTC)
    begun = max(one.not_valid_before_utc for one in chain)
    ends = min(one.not_valid_after_utc for one in chain)
    return (now - begun).total_seconds() / _DAY_S, (ends - now).total_seconds() / _DAY_S
