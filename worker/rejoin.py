"""Which run `barnraise worker join` means: the one in a join link, or one that this machine is enrolled in already.

Decides from what the home folder remembers of each run: its fingerprint, and where its coordinator answered last. The
address says only where to look; who may answer there is settled by the run's certificate, which the enrolment holds, so
a new address is as safe as the old. Reads the home folder. Light: it runs
before torch and gRPC are imported.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from protocol.errors import ConfigError
from protocol.joinlink import Bootstrap, JoinLink, WayBack
from protocol.text import printable

ADDRESS_FILE = "address.json"
ENROLMENT_FILE = "enrolment.json"
COMMAND = "barnraise worker join"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a run's coordinator answered last, and what the run is called."""

    host: str
    port: int
    run_name: str = ""
    others: tuple[tuple[str, int], ...] = ()
    """Where else the link said that the run may be."""
    through: tuple[Bootstrap, ...] = ()
    """Nodes of the peer-to-peer network that stood in the link."""

    @classmethod
    def of(cls, link: JoinLink, run_name: str) -> Address:
        """What is kept of a link: all but its invite."""
        return cls(host=link.host, port=link.port, run_name=run_name, others=link.others, through=link.through)

    def to_json(self) -> bytes:
        """As it is kept in a run's folder."""
        return json.dumps({**asdict(self), "through": list(map(str, self.through))}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run that this machine is enrolled in."""

    fingerprint: str
    run_id: str
    address: Address | None
    """None: enrolled before addresses were remembered."""

    def link(self, host: str, port: int) -> JoinLink:
        """The way back to this run at an address, and from there to wherever else it may be."""
        known = self.address
        if known is None:
            return JoinLink(host=host, port=port, fingerprint=self.fingerprint)
        others = tuple(place for place in known.others if place != (host, port))
        return JoinLink(host=host, port=port, fingerprint=self.fingerprint, others=others, through=known.through)

    @property
    def choice(self) -> str:
        """What to give `join` to mean this run, and no other."""
        where = "HOST:PORT" if self.address is None else self.link(self.address.host, self.address.port).address
        return f"{where}/#{self.fingerprint[:12]}"

    def __str__(self) -> str:
        name = repr(self.address.run_name) if self.address and self.address.run_name else f"run {self.run_id}"
        return f"{name} ({COMMAND} '{self.choice}')"


def link_of(text: str, *roots: Path) -> JoinLink:
    """What `text` means on this machine, whose runs lie under `roots`: a join link, an address, or nothing at all.

    ConfigError says in a sentence why it means no single run, and what to give instead.
    """
    if not text.strip():
        return _only(known_runs(*roots))
    way = WayBack.parse(text)
    if way is None:
        return JoinLink.parse(text)
    known = known_runs(*roots)
    if way.fingerprint:
        found = [run for run in known if run.fingerprint.startswith(way.fingerprint)]
    else:
        found = [run for run in known if _is_at(run, way)] or [run for run in known if run.address is None]
    if len(found) == 1:
        return found[0].link(way.host, way.port)
    if found:
        raise ConfigError(f"this machine is enrolled in {len(found)} runs there: {_listed(found)}; choose one of them")
    what = "in that run" if way.fingerprint else "in any run at that address"
    others = f"; it is enrolled in {_listed(known)}" if known else ""
    raise ConfigError(
        f"this machine is not enrolled {what}{others}. To join a run for the first time, paste the whole join link that"
        " its operator sent you, in quotes: a shell may cut it at the #"
    )


def links_of(text: str, *roots: Path) -> list[JoinLink]:
    """As `link_of`; nothing at all means every run that this machine is enrolled in and whose address it knows."""
    known = known_runs(*roots)
    if text.strip() or len(known) < 2 or any(run.address is None for run in known):
        return [link_of(text, *roots)]
    return [run.link(run.address.host, run.address.port) for run in known if run.address is not None]


def home_root(home: Path | None) -> Path:
    """Where this machine's runs lie: `home`, or the platform's place for user data; ConfigError where there is none."""
    if home is not None:
        return home
    try:
        return platformdirs.user_data_path("barnraise", appauthor=False)
    except (RuntimeError, KeyError) as error:  # no HOME, and no entry for this user that would tell it
        raise ConfigError(
            "this user has no home folder: say with --home FOLDER where this machine's identity and work are kept"
        ) from error


def known_runs(*roots: Path) -> list[KnownRun]:
    """Runs that this machine is enrolled in, each once, by name; what cannot be read is left out."""
    folders = [folder for root in roots if root.is_dir() for folder in root.glob("runs/*")]
    runs = {run.fingerprint: run for folder in reversed(folders) if (run := _known(folder)) is not None}
    return sorted(runs.values(), key=lambda run: (run.address.run_name if run.address else "", run.run_id))


def _only(known: Sequence[KnownRun]) -> JoinLink:
    if not known:
        raise ConfigError(
            "this machine is not enrolled in any run yet: paste the join link that an operator sent you, in quotes, as"
            f" in {COMMAND} 'barnraise://HOST:PORT/#FINGERPRINT.INVITE'"
        )
    if len(known) > 1:
        raise ConfigError(f"this machine is enrolled in {len(known)} runs: {_listed(known)}; choose one of them")
    (run,) = known
    if run.address is None:
        raise ConfigError(
            "this machine is enrolled in a run whose address was not written down at the time: give it once, as in"
            f" {COMMAND} '{run.choice}'; the operator knows HOST:PORT, and your old join link has it, too"
        )
    return run.link(run.address.host, run.address.port)


def _listed(runs: Sequence[KnownRun]) -> str:
    return ", ".join(map(str, runs))


def _is_at(run: KnownRun, way: WayBack) -> bool:
    address = run.address
    return address is not None and (address.host.lower(), address.port) == (way.host.lower(), way.port)


def _known(folder: Path) -> KnownRun | None:
    try:
        enrolment = json.loads((folder / ENROLMENT_FILE).read_bytes())
        certificate = ssl.PEM_cert_to_DER_cert(str(enrolment["ca_pem"]))
        run_id = printable(str(enrolment["run_id"])[:128])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    fingerprint = hashlib.sha256(certificate).hexdigest()
    if not fingerprint.startswith(folder.name):
        return None  # not the certificate that this folder was made for
    return KnownRun(fingerprint=fingerprint, run_id=run_id, address=_address(folder))


def _address(folder: Path) -> Address | None:
    try:
        return address_from((folder / ADDRESS_FILE).read_bytes())
    except OSError:
        return None


def address_from(content: bytes | None) -> Address | None:
    """What `to_json` gave; None where it is something else, or nothing."""
    try:
        value = json.loads(content or b"")
        link = JoinLink(
            host=str(value["host"]),
            port=int(value["port"]),
            fingerprint="0" * 64,
            others=tuple((str(host), int(port)) for host, port in value.get("others", ())),
            through=tuple(Bootstrap.parse(str(peer)) for peer in value.get("through", ())),
        )
        return Address.of(link, printable(str(value["run_name"])[:64]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ConfigError):
        return None
