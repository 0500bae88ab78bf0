"""From rules and circumstances to what stands against working now: pure functions, and every reason is a sentence.

Decides what each rule means for training: one that gives the machine back to its owner (idleness, battery, programs, a
GPU, heat, the schedule) stops it at once; one about the line, or about the work, does not. Where a rule needs to know
what cannot be known here it counts as broken, and says so, unless `when.unknown` is `work`. Caps on heat hold on until
it is cooler (`Heat`), a GPU counts as busy, and as free, only after a while (`OthersUse`), and before a cap pauses
anything training is made slower (`Tempo`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from protocol.text import human_bytes
from worker.policy import Circumstances, Permission
from worker.rules.file import PauseNote
from worker.rules.model import VolunteerRules, bytes_of
from worker.rules.tempo import FULL_TEMPO, Tempo
from worker.rules.week import DAYS, is_open, next_change_s
from worker.words import Words, joined, say

BUSY_AFTER_S = 4.0
"""A GPU that draws a window for a moment is not in use."""
FREE_AFTER_S = 30.0
"""A game that loads a level is."""

NO_LICENCE = ("", "unknown")
"""What a dataset's card says where nobody gave it a licence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One thing that stands against working now."""

    rule: str
    reason: str
    until_s: float | None = None
    """Seconds since 1970, where it is known when this is over."""
    stops_training: bool = True


@dataclass(frozen=True, slots=True)
class Heat:
    """Whether a part counts as too hot: from its cap on, until it is `cool_by` cooler."""

    is_hot: bool = False

    def felt(self, celsius: float | None, cap: float, cool_by: float) -> Heat:
        """After another look."""
        if not cap or celsius is None:
            return Heat()
        return Heat(celsius > (cap - cool_by if self.is_hot else cap))


@dataclass(frozen=True, slots=True)
class OthersUse:
    """Whether other programs count as using the GPU."""

    is_busy: bool = False
    other_since_s: float | None = None
    """Since when what is seen is not what counts."""

    def seen(self, percent: float | None, threshold: float, wall_s: float) -> OthersUse:
        """After another look."""
        if not threshold or percent is None:
            return OthersUse()
        if (percent > threshold) == self.is_busy:
            return OthersUse(self.is_busy)
        since_s = self.other_since_s if self.other_since_s is not None else wall_s
        lasted = FREE_AFTER_S if self.is_busy else BUSY_AFTER_S
        changed = not 0.0 <= wall_s - since_s < lasted  # a clock that was set back ends it, too
        return OthersUse(not self.is_busy) if changed else OthersUse(self.is_busy, since_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Felt:
    """What is remembered from one look to the next."""

    gpu: Heat = Heat()
    cpu: Heat = Heat()
    others: OthersUse = OthersUse()
    tempo: Tempo = FULL_TEMPO

    def after(self, rules: VolunteerRules, now: Circumstances) -> Felt:
        """What is remembered after this look."""
        return Felt(
            gpu=self.gpu.felt(now.gpu_celsius, rules.gpu.most_celsius, rules.gpu.cool_by),
            cpu=self.cpu.felt(now.cpu_celsius, rules.cpu.most_celsius, rules.cpu.cool_by),
            others=self.others.seen(now.gpu_others_percent, rules.gpu.others_percent, now.wall_s),
            tempo=self.tempo.after(rules, now),
        )


def permission_of(objections: tuple[Objection, ...], wall_s: float, zone: tzinfo | None = None) -> Permission:
    """All that stands against it in one answer; until when it is known only where each of them tells."""
    if not objections:
        return Permission(allowed=True)
    ends = [each.until_s for each in objections if each.until_s is not None]
    return Permission(
        allowed=False,
        reason=joined((_until(each, wall_s, zone) for each in objections), "; "),
        stops_training=any(each.stops_training for each in objections),
        until_s=max(ends) if len(ends) == len(objections) else None,
    )


def objections(
    rules: VolunteerRules, now: Circumstances, felt: Felt, note: PauseNote | None, zone: tzinfo | None = None
) -> tuple[Objection, ...]:
    """Everything that stands against working now, what the volunteer said last first."""
    if note is not None and not note.is_over(now.wall_s):
        said = Objection(rule="pause", reason=say("no.pause"), until_s=note.until_s)
        return (said, *_ruled(rules, now, felt, zone))
    return tuple(_ruled(rules, now, felt, zone))


def needed(rules: VolunteerRules) -> frozenset[str]:
    """Fields of `Circumstances` that these rules look at: nothing else need be found out."""
    when, gpu, cpu, network = rules.when, rules.gpu, rules.cpu, rules.network
    wanted = {
        "idle_s": when.idle_minutes > 0,
        "on_battery": when.battery == "pause" or when.battery_least_percent > 0,
        "programs": bool(when.programs),
        "gpu_others_percent": gpu.others_percent > 0,
        "gpu_celsius": gpu.most_celsius > 0,
        "gpu_watts": gpu.most_watts > 0,
        "cpu_celsius": cpu.most_celsius > 0,
        "is_metered": network.metered == "pause",
    }
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def _ruled(rules: VolunteerRules, now: Circumstances, felt: Felt, zone: tzinfo | None) -> Iterator[Objection]:
    yield from _owner(rules, now, zone)
    yield from _parts(rules, now, felt)
    yield from _line(rules, now, zone)
    yield from _work(rules, now)
    if rules.when.unknown == "wait":
        for name in sorted(needed(rules) & now.lacking.keys()):
            yield Objection(rule=name, reason=say("no.unknown", why=Words(now.lacking[name])))


def _owner(rules: VolunteerRules, now: Circumstances, zone: tzinfo | None) -> Iterator[Objection]:
    when = rules.when
    if not is_open(rules.spans, datetime.fromtimestamp(now.wall_s, zone)):
        until_s = next_change_s(rules.spans, now.wall_s, zone)
        yield Objection(rule="when.schedule", reason=say("no.schedule"), until_s=until_s)
    if when.idle_minutes and now.idle_s is not None and now.idle_s < when.idle_minutes * 60:
        until_s = now.wall_s + when.idle_minutes * 60 - now.idle_s
        yield Objection(rule="when.idle_minutes", reason=say("no.idle"), until_s=until_s)
    if now.on_battery and when.battery == "pause":
        yield Objection(rule="when.battery", reason=say("no.battery"))
    elif now.on_battery and (percent := now.battery_percent) is not None and percent < when.battery_least_percent:
        low = say("no.battery_low", percent=f"{percent:.0f}")
        yield Objection(rule="when.battery_least_percent", reason=low)
    for program in sorted((now.programs or frozenset()) & set(when.programs)):
        yield Objection(rule="when.programs", reason=say("no.program", program=program))


def _parts(rules: VolunteerRules, now: Circumstances, felt: Felt) -> Iterator[Objection]:
    if now.gpu is not None and now.gpu in rules.gpu.off:
        yield Objection(rule="gpu.off", reason=say("no.gpu_off", number=now.gpu))
    if felt.others.is_busy:
        yield Objection(rule="gpu.others_percent", reason=say("no.gpu_busy"))
    if felt.gpu.is_hot:
        yield _hot("gpu.most_celsius", "no.gpu_hot", now.gpu_celsius, rules.gpu.most_celsius - rules.gpu.cool_by)
    if felt.tempo.pauses_until_s is not None:
        power = say("no.gpu_power", most=f"{rules.gpu.most_watts:.0f}")
        yield Objection(rule="gpu.most_watts", reason=power, until_s=felt.tempo.pauses_until_s)
    if felt.cpu.is_hot:
        yield _hot("cpu.most_celsius", "no.cpu_hot", now.cpu_celsius, rules.cpu.most_celsius - rules.cpu.cool_by)


def _hot(rule: str, name: str, celsius: float | None, goes_on: float) -> Objection:
    return Objection(rule=rule, reason=say(name, celsius=f"{celsius or 0:.0f}", cool=f"{goes_on:.0f}"))


def _line(rules: VolunteerRules, now: Circumstances, zone: tzinfo | None) -> Iterator[Objection]:
    network, today = rules.network, datetime.fromtimestamp(now.wall_s, zone)
    midnight = today.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    first = (today.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1)
    if now.is_metered and network.metered == "pause":
        yield Objection(rule="network.metered", reason=say("no.metered"), stops_training=False)
    for rule, amount, used, until, name in (
        ("network.daily", network.daily, now.today_bytes, midnight, "no.daily"),
        ("network.monthly", network.monthly, now.month_bytes, first, "no.monthly"),
    ):
        most = bytes_of(amount)
        if most is not None and used is not None and used >= most:
            reason = say(name, amount=human_bytes(most))
            yield Objection(rule=rule, reason=reason, until_s=until.timestamp(), stops_training=False)


def _work(rules: VolunteerRules, now: Circumstances) -> Iterator[Objection]:
    accepted, licence = rules.lease.licences, now.data_licence
    if accepted and licence is not None and licence.lower() not in {each.lower() for each in accepted}:
        known = licence not in NO_LICENCE
        reason = say("no.licence", licence=licence) if known else say("no.licence_told")
        yield Objection(rule="lease.licences", reason=reason)


def until_text(until_s: float, wall_s: float, zone: tzinfo | None = None) -> str:
    """`18:00`, `Mon 08:00` or `3 Dec 08:00`, as near as it is."""
    until, now = datetime.fromtimestamp(until_s, zone), datetime.fromtimestamp(wall_s, zone)
    clock = f"{until:%H:%M}"
    if until.date() == now.date():
        return clock
    near = until_s - wall_s < 6 * 86400
    return f"{DAYS[until.weekday()].title()} {clock}" if near else f"{until.day} {until:%b} {clock}"


def _until(one: Objection, wall_s: float, zone: tzinfo | None) -> str:
    if one.until_s is None:
        return one.reason
    return say("until", why=Words(one.reason), moment=until_text(one.until_s, wall_s, zone))
