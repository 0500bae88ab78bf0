"""What training takes from the socket: measured where the machine counts it, else estimated, and always marked so.

Decides who is asked: a GPU's own counter; for a processor the counters of its packages (RAPL), where they may be read;
else watts times the seconds of training. Holds always: only the time in which a lease is in training counts, and then
all that the part took, what others did on it included; measured and estimated are never one sum. What the run signs in
receipts has none of this, since nobody but this machine can know it (docs/decisions/0084). Touches one small file of
the run's folder, and the counters.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError, StorageTrouble
from worker.senses.card import NvidiaCard
from worker.senses.parts import CpuHeatSense
from worker.senses.sense import Senseless

ENERGY_FILE: Final = "energy.json"
JOULES_A_KWH: Final = 3.6e6
CPU_WATTS: Final = 65.0
"""A desktop's processor at work, by its makers' thermal design power; a laptop's takes half, a server's four times."""
GPU_WATTS: Final = 200.0
"""Where a driver tells neither a counter nor a limit: between a small card and a large one."""
MOST_WATTS: Final = 5000.0
"""No part takes more; a counter that leaps further was set back, or belongs to a driver that came anew."""
LONGEST_GAP_S: Final = 60.0
"""Between two looks: after a longer one the machine slept, and nothing was trained."""
WRITE_EVERY_S: Final = 60.0
KEPT_LEASES: Final = 200

How = Literal["measured", "estimated"]


class EnergyUse(BaseModel):
    """Joules, by how they are known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured_j: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    estimated_j: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)

    @property
    def kwh(self) -> dict[str, float]:
        """As people pay for it: measured, and estimated."""
        return {
            "measured_kwh": round(self.measured_j / JOULES_A_KWH, 6),
            "estimated_kwh": round(self.estimated_j / JOULES_A_KWH, 6),
        }

    def more(self, joules: float, how: How) -> EnergyUse:
        """With so much added."""
        return self.model_copy(update={f"{how}_j": getattr(self, f"{how}_j") + joules})


class EnergyNotes(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: EnergyUse = EnergyUse()
    leases: dict[str, EnergyUse] = {}
    """Of the latest leases, the oldest first."""

    def with_more(self, lease: str, joules: float, how: How) -> EnergyNotes:
        """With so much added for `lease`."""
        leases = {**self.leases, lease: self.leases.get(lease, EnergyUse()).more(joules, how)}
        while len(leases) > KEPT_LEASES:
            del leases[next(iter(leases))]
        return EnergyNotes(total=self.total.more(joules, how), leases=leases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """How the part that trains is at the moment; None: nothing tells."""

    part: str
    celsius: float | None = None
    watts: float | None = None
    how: How = "estimated"
    """Whether `watts` are counted, or assumed."""


class Counter(Protocol):
    """A part of the machine that may count what it takes."""

    @property
    def part(self) -> str:
        """What it is called."""

    def joules(self) -> float:
        """A count that only grows; Senseless where there is none."""

    def assumed_watts(self) -> float:
        """What it takes while it trains, where nothing counts."""

    def celsius(self) -> float:
        """How hot it is; Senseless."""


class CardCounter:
    """A GPU; a `Counter`."""

    def __init__(self, card: NvidiaCard, number: int, ruled_watts: Callable[[], float] = lambda: 0.0) -> None:
        self.part, self._card, self._ruled_watts = f"GPU {number}", card, ruled_watts

    def joules(self) -> float:
        """The card's own count."""
        return self._card.joules()

    def assumed_watts(self) -> float:
        """What it takes just now, or may take."""
        if self._ruled_watts():
            return self._ruled_watts()
        for ask in (self._card.watts, self._card.limit_watts):
            with contextlib.suppress(Senseless):
                return ask()
        return GPU_WATTS

    def celsius(self) -> float:
        """By the driver."""
        return self._card.celsius()


class ProcessorCounter:
    """The processor, all of it; a `Counter`."""

    part = "processor"

    def __init__(
        self,
        ruled_watts: Callable[[], float] = lambda: 0.0,
        root: Path = Path("/sys/class/powercap"),
        heat: CpuHeatSense | None = None,
    ) -> None:
        self._ruled_watts, self._heat = ruled_watts, heat or CpuHeatSense()
        self._packages = sorted(root.glob("intel-rapl:[0-9]*")) if root.is_dir() else []
        self._packages = [one for one in self._packages if one.name.count(":") == 1]
        self._before: dict[Path, float] = {}
        self._sum = 0.0

    def joules(self) -> float:
        """Of all packages; each counts to its own end, and begins again."""
        if not self._packages:
            raise Senseless("this machine's processor does not count what it takes")
        try:
            for package in self._packages:
                now_j = float((package / "energy_uj").read_text()) / 1e6
                before_j = self._before.get(package, now_j)
                end_j = float((package / "max_energy_range_uj").read_text()) / 1e6 if now_j < before_j else 0.0
                self._sum += now_j - before_j + end_j
                self._before[package] = now_j
        except (OSError, ValueError):
            raise Senseless("what the processor takes may be read by the system's administrator only") from None
        return self._sum

    def assumed_watts(self) -> float:
        """What the rules say, or a usual one's."""
        return self._ruled_watts() or CPU_WATTS

    def celsius(self) -> float:
        """By the kernel's drivers."""
        return float(str(self._heat.read()["cpu_celsius"]))


class Notebook(Protocol):
    """Where a small file is kept (worker/home.py: RunHome)."""

    def keep(self, name: str, content: bytes) -> None:
        """Write it."""

    def kept(self, name: str) -> bytes | None:
        """What was written."""


class EnergyMeter:
    """Adds up what training takes, one look after the other; `close` may come from another thread than looks."""

    def __init__(self, counter: Counter, notebook: Notebook, clock: Callable[[], float]) -> None:
        self._counter, self._notebook, self._clock = counter, notebook, clock
        self._looked_s: float | None = None
        self._count_j: float | None = None
        self._written_s, self._lease = clock(), ""
        self._lock, self._is_closed = threading.Lock(), False
        """Held while notes change, never while the machine is asked."""
        self.notes = EnergyNotes()
        with contextlib.suppress(ValidationError, ConfigError):
            self.notes = EnergyNotes.model_validate_json(notebook.kept(ENERGY_FILE) or b"")
        self._written = self.notes
        self.gauge = Gauge(part=counter.part)

    def look(self, lease: str | None) -> None:
        """`lease`: what is in training since the last look; None: nothing is. May block for a moment."""
        now_s, count_j = self._clock(), self._counted()
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        measured_j = None if count_j is None or self._count_j is None else count_j - self._count_j
        self._looked_s, self._count_j = now_s, count_j
        is_sane = 0.0 < passed_s <= LONGEST_GAP_S
        if measured_j is not None and not 0.0 <= measured_j <= MOST_WATTS * passed_s:
            measured_j = None
        self._show(measured_j, passed_s)
        how: How = "measured"
        used_j = measured_j
        if measured_j is None and lease and is_sane:
            used_j, how = min(self._counter.assumed_watts(), MOST_WATTS) * passed_s, "estimated"
        with self._lock:
            if self._is_closed:
                return
            if lease and is_sane and used_j is not None:
                self.notes = self.notes.with_more(lease, used_j, how)
            if now_s - self._written_s >= WRITE_EVERY_S or (self._lease and self._lease != lease):
                self._write()
            self._lease = lease or ""

    def close(self) -> None:
        """Written, so that it outlives the process. A look that comes back after that changes nothing: the folder may
        be another process's by then."""
        with self._lock:
            self._is_closed = True
            self._write()

    def _write(self) -> None:
        """A full disk costs a minute's count."""
        self._written_s = self._clock()
        if self.notes == self._written:
            return
        self._written = self.notes
        with contextlib.suppress(StorageTrouble, OSError):
            self._notebook.keep(ENERGY_FILE, self.notes.model_dump_json().encode())

    def _counted(self) -> float | None:
        try:
            count_j = self._counter.joules()
        except Senseless:
            return None
        return count_j if math.isfinite(count_j) else None

    def _show(self, measured_j: float | None, passed_s: float) -> None:
        gauge = Gauge(part=self._counter.part)
        with contextlib.suppress(Senseless):
            gauge = replace(gauge, celsius=self._counter.celsius())
        if measured_j is not None and passed_s > 0.0:
            gauge = replace(gauge, watts=measured_j / passed_s, how="measured")
        self.gauge = gauge


def noted_energy(folder: Path) -> EnergyUse:
    """What stands in a run's folder; nothing where nothing does, or it cannot be read."""
    with contextlib.suppress(OSError, ValidationError):
        return EnergyNotes.model_validate_json((folder / ENERGY_FILE).read_bytes()).total
    return EnergyUse()


def energy_words(measured_kwh: float, estimated_kwh: float) -> str:
    """`0.42 kWh measured`, `4.2 Wh estimated`, or both."""
    parts = [
        f"{kwh:.2f} kWh {how}" if kwh >= 0.01 else f"{1000.0 * kwh:.1f} Wh {how}"
        for kwh, how in ((measured_kwh, "measured"), (estimated_kwh, "estimated"))
        if kwh > 0.0
    ]
    return " and ".join(parts) or "nothing yet"
