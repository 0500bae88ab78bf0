"""One volunteer's rules in force: what the worker asks of them, each second and each time something counts.

Decides which part of the machine is looked at (only what a rule needs), and that a file which makes no sense leaves the
rules as they were. Everything that follows from a changed rule follows at the next look: a pause at once, the number of
threads and the size of the cache with the next lease. Touches `rules.toml`, `pause.json`, `traffic.json`, the senses,
and this process's priority.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from protocol.errors import ConfigError
from worker.lease import ReceivedLease
from worker.policy import Circumstances
from worker.rules.file import RULES_FILE, PauseNote, note_pause, noted_pause, read_rules
from worker.rules.judging import needed
from worker.rules.model import VolunteerRules, bytes_of
from worker.rules.policy import RuledPolicy
from worker.rules.traffic import CountedWire, HouseLine, Ledger, RuledLine
from worker.senses.bus import MeteredSense
from worker.senses.idle import IdleSense
from worker.senses.parts import BatterySense, CpuHeatSense, GpuSense, ProgramsSense
from worker.senses.sense import Sense, Senses
from worker.sentences import rough_duration
from worker.wire import Wire
from worker.words import Words, say

if TYPE_CHECKING:
    from peering.pace import Spend
    from worker.swarm import HolderLine

KEEP_FREE_SHARE = 0.05
"""Of a disk: on a small one, two gigabytes may be all there is."""

TIDY_EVERY_S = 10.0
OF_OWN_WORK = ("finish", "lease.licences")
"""Rules that say nothing about giving blocks to others: of work to come, and of what is trained on."""


class House:
    """Rules, senses and the line of one home."""

    def __init__(
        self,
        home: Path,
        *,
        gpu: int | None = None,
        gpu_uuid: str = "",
        senses: list[Sense] | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda _: None,
        line: HouseLine | None = None,
    ) -> None:
        """`gpu`: number of the one that the worker uses. `tell` hears of a file that makes no sense. `line`: that of
        all runs of this process; None: one of its own. ConfigError where the rules make none at the start."""
        self._home, self._path, self._wall, self._clock, self._tell = home, home / RULES_FILE, wall, clock, tell
        self.policy = RuledPolicy(read_rules(self._path), note=noted_pause(home))
        self._seen, self._tidied_s = self._stamp(), clock()
        self._senses = senses_of(lambda: self.rules, clock, gpu, gpu_uuid) if senses is None else Senses(senses, clock)
        self._senses_real = senses is None
        self.gpu, self.gpu_uuid = gpu, gpu_uuid
        self.is_training: Callable[[], bool] = lambda: True
        """Whether the worker trains at the moment."""
        self.data_licence: str | None = None
        """Of what the run trains on; None: not known yet."""
        self._line = line or HouseLine(home, clock)
        self._line.rules = self.rules.network
        self.trouble = ""
        """Why the rules' file is not followed; empty: it is."""
        self._step_back()

    @property
    def ledger(self) -> Ledger:
        """Of what went over the line."""
        return self._line.ledger

    @property
    def rules(self) -> VolunteerRules:
        """What is in force."""
        return self.policy.rules

    def learn_gpu(self, gpu: int | None, gpu_uuid: str) -> None:
        """Which one the worker uses, once that is known; None: none."""
        self.gpu, self.gpu_uuid = gpu, gpu_uuid
        if self._senses_real:
            self._senses = senses_of(lambda: self.rules, self._clock, gpu, gpu_uuid)

    def learn_licence(self, licence: str) -> None:
        """Under which licence the run's data is; empty: the run does not say."""
        self.data_licence = licence

    def look(self, make_room: Callable[[int], object] = lambda _: None) -> Circumstances:
        """What is known now, after reading the rules where they were changed. May block for some seconds.

        `make_room` gets the cache to obey its cap, and the disk's shortness, from time to time.
        """
        self._read_again()
        if self._clock() - self._tidied_s >= TIDY_EVERY_S:
            self._tidied_s = self._clock()
            make_room(0)
        wall_s = self._wall()
        look = self._senses.look(needed(self.rules))
        today, month = self.ledger.used(datetime.fromtimestamp(wall_s).date())
        known = {
            "is_training": self.is_training(),
            "gpu": self.gpu, "data_licence": self.data_licence, "today_bytes": today, "month_bytes": month,
        }  # fmt: skip
        return Circumstances(wall_s=wall_s, lacking=look.lacking, **{**known, **look.facts})  # type: ignore[arg-type]

    def pause(self, until_s: float | None) -> None:
        """The volunteer says so; it outlives this process."""
        self.policy.note = PauseNote(until_s=until_s)
        note_pause(self._home, self.policy.note)

    def resume(self) -> None:
        """What the volunteer said is over; what the rules say is not."""
        self.policy.note = None
        note_pause(self._home, None)

    def unwanted(self, lease: ReceivedLease) -> str:
        """Why the rules do not accept a lease; empty: they do."""
        most_s = self.rules.lease.longest_hours * 3600.0
        if not most_s or lease.ttl_s <= most_s:
            return ""
        return say("lease_unwanted.long", span=rough_duration(lease.ttl_s), most=rough_duration(most_s))

    def counted(self, wire: Wire) -> CountedWire:
        """`wire`, at the volunteer's rates."""
        return self._line.counted(wire)

    def taking(self, line: HolderLine) -> RuledLine:
        """The line to another worker, at the volunteer's rates."""
        return self._line.taking(line)

    @property
    def is_closed(self) -> bool:
        """Whether, as the last look has found, the rules give other workers nothing: a pause, an amount used up."""
        return any(each.rule not in OF_OWN_WORK for each in self.policy.objections)

    def giving(self) -> AbstractAsyncContextManager[Spend]:
        """As a `peering.serving.Uplink`."""
        return self._line.giving(lambda: self.is_closed)

    async def passing(self, count: int) -> None:
        """Likewise."""
        await self._line.passing(count, lambda: self.is_closed)

    @property
    def disk_bytes(self) -> int | None:
        """What a run's folder may take; None: nothing is ruled."""
        return bytes_of(self.rules.disk.most)

    def short_of_disk_bytes(self, coming_bytes: int = 0) -> int:
        """What is missing, once so much more is written, of the room that the disk is to keep free."""
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(self._home)
            keep = min(bytes_of(self.rules.disk.keep_free) or 0, int(KEEP_FREE_SHARE * usage.total))
            return max(0, keep + coming_bytes - usage.free)
        return 0

    def _read_again(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        self.policy.note = noted_pause(self._home)
        try:
            rules = read_rules(self._path)
        except ConfigError as error:
            self.trouble = say("rules.senseless", why=Words(str(error)))
            self._tell(self.trouble)
            return
        self.trouble = ""
        if rules != self.rules:
            self.policy.rules, self._line.rules = rules, rules.network
            self._tell(say("rules.changed"))
            self._step_back()

    def _stamp(self) -> tuple[int, ...]:
        return tuple(_stamp_of(path) for path in (self._path, self._home / "pause.json"))

    def _step_back(self) -> None:
        """Only root may come forward again; nobody is worse off for being told so in the rule's own words."""
        with contextlib.suppress(psutil.Error, OSError, AttributeError):
            process = psutil.Process()
            if hasattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS"):
                process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if self.rules.cpu.niceness else process.nice())
            elif self.rules.cpu.niceness > process.nice():
                process.nice(self.rules.cpu.niceness)


def senses_of(
    rules: Callable[[], VolunteerRules], clock: Callable[[], float], gpu: int | None = None, gpu_uuid: str = ""
) -> Senses:
    """What this machine can tell of itself. `gpu`: number of the one that the worker uses."""
    programs = ProgramsSense(lambda: rules().when.programs)
    senses = (IdleSense(), BatterySense(), programs, CpuHeatSense(), GpuSense(gpu, gpu_uuid), MeteredSense())
    return Senses(senses, clock)


def _stamp_of(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return hash((status.st_mtime_ns, status.st_size, status.st_ino))
