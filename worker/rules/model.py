"""What a volunteer may rule about their machine: one frozen model, validated once.

Decides which rules there are, what they are without being set, and which values make sense. What each means is its
description, which `rules.toml` and `barnraise worker rules` show. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from peering.limits import MIN_SHARE_BYTES_PER_S
from protocol.amounts import parse_bytes
from protocol.errors import ConfigError
from protocol.limits import MIN_TRANSFER_BYTES_PER_S
from protocol.misfits import misfit
from worker.rules.week import WeekSpan, spans_of

Given = TypeVar("Given")
Made = TypeVar("Made")

LEAST_RATE: Final = 2 * MIN_TRANSFER_BYTES_PER_S
"""A transfer that is slower is broken off by whoever is at the other end."""


def _amount(text: str) -> str:
    if text:
        _parsed(parse_bytes, text)
    return text


def _rate(text: str) -> str:
    if text and _parsed(parse_bytes, text) < LEAST_RATE:
        raise ValueError(f"less than {LEAST_RATE // 1024}KB a second is broken off at the other end")
    return text


def _share(text: str) -> str:
    if text and _parsed(parse_bytes, text) < MIN_SHARE_BYTES_PER_S:
        raise ValueError(f"less than {MIN_SHARE_BYTES_PER_S // 1000}KB a second is of no use to others")
    return text


def _schedule(entries: tuple[str, ...]) -> tuple[str, ...]:
    _parsed(spans_of, entries)
    return entries


def _parsed(parse: Callable[[Given], Made], given: Given) -> Made:
    """As the validation wants to hear of what is wrong."""
    try:
        return parse(given)
    except ConfigError as error:
        raise ValueError(str(error)) from None


RUNS: Final = "runs"
Amount = Annotated[str, AfterValidator(_amount)]
RuledRate = Annotated[str, AfterValidator(_rate)]
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class WhenRules(BaseModel):
    """When the machine may work."""

    model_config = _FROZEN

    schedule: Annotated[tuple[str, ...], AfterValidator(_schedule)] = Field(
        default=(),
        description="Days and times of the local clock, as in ['mon-fri 19:00-08:00', 'sat,sun']; [] is always.",
    )
    idle_minutes: float = Field(
        default=0.0,
        ge=0.0,
        le=1440.0,
        description="Only while nobody has touched keyboard or mouse for so many minutes; 0: never mind.",
    )
    battery: Literal["pause", "work"] = Field(default="pause", description="What to do on battery: pause or work.")
    battery_least_percent: float = Field(
        default=0.0, ge=0.0, le=100.0, description="With battery = 'work': pause while it holds less than this."
    )
    programs: tuple[str, ...] = Field(
        default=(), description="Pause while one of these programs runs, as in ['blender', 'steam']."
    )
    unknown: Literal["wait", "work"] = Field(
        default="wait",
        description="Where a rule cannot be checked on this machine: wait (you are told which), or work all the same.",
    )


class GpuRules(BaseModel):
    """The GPU."""

    model_config = _FROZEN

    off: tuple[int, ...] = Field(default=(), description="Numbers of GPUs that are not to be used, as in [1].")
    memory: Amount = Field(
        default="",
        description="Take at most so much of the GPU's memory, as in '6GB'; '': nine tenths of what is free.",
    )
    others_percent: float = Field(
        default=0.0,
        ge=0.0,
        le=100.0,
        description="Pause while other programs keep the GPU busy for more than this share of the time; 0: never mind.",
    )
    most_celsius: float = Field(
        default=0.0,
        ge=0.0,
        le=120.0,
        description="Train slower when the GPU is nearly as hot as this, pause when it is hotter; 0: never mind.",
    )
    cool_by: float = Field(
        default=8.0, ge=0.0, le=60.0, description="Go on, or faster, when it is so many degrees cooler than the cap."
    )
    most_watts: float = Field(
        default=0.0,
        ge=0.0,
        le=5000.0,
        description="Train slower when the GPU takes more power than this, on average over half a minute; pause where"
        " the slowest takes more; 0: never mind. Clocks and power limits stay as they are.",
    )


class CpuRules(BaseModel):
    """The processor."""

    model_config = _FROZEN

    memory: Amount = Field(
        default="",
        description="Training on the processor, take at most so much memory, as in '4GB'; '': half of what is free."
        " In force from the worker's next start.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Train with so many threads; 0: as many as cores.")
    niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How far to step back for other programs, 0 to 19. Lowering it needs a restart of the worker.",
    )
    most_celsius: float = Field(
        default=0.0,
        ge=0.0,
        le=120.0,
        description="Train slower when the processor is nearly as hot as this, pause when it is hotter; 0: never mind.",
    )
    cool_by: float = Field(
        default=8.0, ge=0.0, le=60.0, description="Go on, or faster, when it is so many degrees cooler than the cap."
    )


class LeaseRules(BaseModel):
    """The work that is accepted."""

    model_config = _FROZEN

    longest_hours: float = Field(
        default=0.0, ge=0.0, le=8760.0, description="Hand back leases that last longer than this; 0: none is too long."
    )
    licences: tuple[str, ...] = Field(
        default=(),
        description="Train on data under these licences only, as in ['CC0-1.0', 'PSF-2.0']; []: under any.",
    )


class DiskRules(BaseModel):
    """The disk."""

    model_config = _FROZEN

    most: Amount = Field(
        default="", description="Take at most so much for a run, as in '20GB'; '': what a lease needs and 8GB of cache."
    )
    keep_free: Amount = Field(
        default="2GB",
        description="Give cached blocks up while the disk has less than this free (or less than a twentieth of it).",
    )


class NetworkRules(BaseModel):
    """The line."""

    model_config = _FROZEN

    upload_rate: RuledRate = Field(default="", description="Send at most so much a second, as in '1MB'; '': no limit.")
    download_rate: RuledRate = Field(default="", description="Fetch at most so much a second; '': no limit.")
    daily: Amount = Field(default="", description="Pause for the rest of a day on which so much went over the line.")
    monthly: Amount = Field(default="", description="The same for a calendar month.")
    metered: Literal["pause", "work"] = Field(
        default="work", description="What to do while the system calls the connection metered: pause or work."
    )


class PeerRules(BaseModel):
    """Other workers of the runs, as far as `worker join` is not told otherwise. In force from the next start."""

    model_config = _FROZEN

    share: Annotated[str, AfterValidator(_share)] = Field(
        default="",
        description="Give what this machine has fetched to other workers, at most so much a second, as in '1MB': that"
        " opens a port, and they learn this machine's address; '': nothing. From the worker's next start.",
    )
    port: int = Field(
        default=0, ge=0, le=65535, description="Where they come for it, to be forwarded by a router; 0: any port."
    )
    archive: bool = Field(
        default=False,
        description="Keep the newest version whole, so that the run could go on without its operator: true or false."
        " From the worker's next start.",
    )
    p2p: bool = Field(
        default=False,
        description="Take part in the runs' peer-to-peer networks, by which a run that moved is found: true or false."
        " From the worker's next start.",
    )
    p2p_port: int = Field(
        default=0, ge=0, le=65535, description="Where others reach this machine in them, if it shares; 0: any port."
    )
    relay: bool = Field(
        default=False,
        description="With share and p2p: pass on what others give to whom nobody can connect to, within the same rate:"
        " true or false. From the worker's next start.",
    )


class RunRules(BaseModel):
    """One of the runs that this machine works for."""

    model_config = _FROZEN

    share: float = Field(
        default=1.0,
        ge=0.0,
        le=1000.0,
        description="Its part of the device's time, against the shares of the other runs; 0: none.",
    )


class EnergyRules(BaseModel):
    """What it is reckoned with."""

    model_config = _FROZEN

    watts: float = Field(
        default=0.0,
        ge=0.0,
        le=5000.0,
        description="What the part that trains takes, for the estimate where nothing counts it; 0: a usual one's.",
    )


class VolunteerRules(BaseModel):
    """Everything that one machine's owner has ruled."""

    model_config = _FROZEN

    when: WhenRules = WhenRules()
    gpu: GpuRules = GpuRules()
    cpu: CpuRules = CpuRules()
    lease: LeaseRules = LeaseRules()
    disk: DiskRules = DiskRules()
    network: NetworkRules = NetworkRules()
    peers: PeerRules = PeerRules()
    runs: dict[str, RunRules] = Field(default_factory=dict)
    """By name, id, or the coordinator's HOST:PORT."""
    energy: EnergyRules = EnergyRules()

    @property
    def spans(self) -> tuple[WeekSpan, ...]:
        """The schedule."""
        return spans_of(self.when.schedule)

    def share_of(self, names: tuple[str, ...]) -> float:
        """Of a run that has these names."""
        return next((self.runs[name].share for name in names if name in self.runs), RunRules().share)

    def memory_bytes(self, kind: str) -> int | None:
        """The most on a `cpu` or a `cuda` device; None: nothing is ruled."""
        return bytes_of(self.cpu.memory if kind == "cpu" else self.gpu.memory)

    @classmethod
    def checked(cls, values: dict[str, Any], where: str) -> VolunteerRules:
        """Of what a file has; ConfigError that names the rule, what is wrong, and where."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {'; '.join(_told(each) for each in error.errors())}") from None


def keys() -> Iterator[tuple[str, str, Any]]:
    """Each rule's key as `when.schedule`, what it means, and what it is without being set."""
    for section, table in VolunteerRules.model_fields.items():
        if section == RUNS:
            continue  # one for each run: `of_run`
        for name, field in type(table.default).model_fields.items():
            yield f"{section}.{name}", field.description or "", field.default


def of_run(key: str) -> str | None:
    """The run that `runs.NAME.share` is about, whatever is in its name; None: it is no such key."""
    is_one = key.startswith(f"{RUNS}.") and key.endswith(".share")
    return key.removeprefix(f"{RUNS}.").removesuffix(".share") or None if is_one else None


def bytes_of(amount: str) -> int | None:
    """Of an amount that was checked; None where none is set."""
    return parse_bytes(amount) if amount else None


def _told(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"there is no rule {key}; `barnraise worker rules` lists them all"
    return f"{key}: {misfit(error)}"
