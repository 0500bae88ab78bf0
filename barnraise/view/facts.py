"""What the view shows of a worker's status, as lines of text: pure, and without a terminal.

Decides which facts stand in which panel, and in what words; how much room there is decides the screen. Holds always: a
state is told in words, never by a colour alone; whatever a worker's answer lacks is left out. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.text import human_bytes, printable
from worker.energy import energy_words
from worker.sentences import rough_duration

Status = dict[str, Any]
_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = ".:-=+*#@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A title and what stands below it."""

    name: str
    title: str
    lines: tuple[str, ...]


def heading(status: Status) -> str:
    """Which run this is."""
    run = status.get("run_name") or status.get("run_id") or "not enrolled yet"
    return printable(f"{run}, at {status.get('coordinator', '?')}")


def state_words(status: Status) -> tuple[str, str]:
    """The state in a word or two, and the sentence with why and until when."""
    says = printable(str(status.get("says", "")))
    word, colon, rest = says.partition(": ")
    if colon and len(word) <= 12 and " " not in word:
        return word.upper(), rest
    first, _, _ = says.partition(" ")
    return first.strip(";,").upper(), says


def lease_panel(status: Status, width: int) -> Panel:
    """The present lease, how far it is, and until when it lasts."""
    lease = status.get("lease")
    if not lease:
        return Panel(name="lease", title="lease", lines=("none at the moment",))
    done, steps = int(lease["step"]), int(lease["steps"])
    lines = [f"{lease['lease']}, round {lease['round']}"]
    if steps:
        lines.append(f"{bar(done / steps, max(8, min(40, width - 16)))} {done} of {steps} steps")
        loss = "" if lease["loss"] is None else f"loss {lease['loss']:.3f}, "
        lines.append(f"{loss}{lease['tokens_per_s']:,.0f} tokens/s")
        if status.get("state") == "paused":
            lines.append("it waits at its last saved step")
        elif lease["left_s"] is not None:
            lines.append(f"about {rough_duration(lease['left_s'])} left")
    return Panel(name="lease", title="lease", lines=tuple(map(printable, lines)))


def machine_panel(status: Status) -> Panel:
    """Temperature, power, energy, and what went over the line."""
    gauge, energy = status.get("gauge") or {}, status.get("energy") or {}
    lines = [printable(str(status["machine"]))] if status.get("machine") else []
    felt = []
    if gauge.get("celsius") is not None:
        felt.append(f"{gauge['celsius']:.0f} °C")
    if gauge.get("watts") is not None:
        felt.append(f"{gauge['watts']:.0f} W")
    if gauge:
        unknown = "temperature and power are not told here"
        lines.append(f"{printable(str(gauge['part']))}: {', '.join(felt) if felt else unknown}")
    if energy:
        lines.append(f"energy for training: {energy_words(**energy)}")
    today, month = human_bytes(status.get("today_bytes", 0)), human_bytes(status.get("month_bytes", 0))
    lines.append(f"over the line: {today} today, {month} this month")
    return Panel(name="machine", title="this machine", lines=tuple(lines))


def work_panel(status: Status) -> Panel:
    """What came of it."""
    credit = status.get("credit")
    lines = []
    if credit and credit["rank"]:
        lines.append(f"{credit['tokens']:,} validated tokens, rank {credit['rank']} of {credit['ranked']}")
    else:
        lines.append("nothing is credited yet: that comes with the first work that is accepted")
    lines.append(f"since its start: {status.get('accepted', 0)} accepted, {status.get('rejected', 0)} refused")
    return Panel(name="work", title="your contribution", lines=tuple(lines))


def loss_panel(status: Status, width: int, *, plain: bool = False) -> Panel:
    """The run's held-out loss, version by version."""
    losses = [float(one) for one in (status.get("credit") or {}).get("losses") or ()]
    if not losses:
        return Panel(name="loss", title="the run's loss", lines=("not told yet",))
    line = sparkline(losses, max(4, width), plain=plain)
    span = f"{losses[0]:.3f} to {losses[-1]:.3f} over {len(losses)} versions" if len(losses) > 1 else f"{losses[0]:.3f}"
    return Panel(name="loss", title="the run's loss", lines=(line, span))


def verdict_panel(status: Status) -> Panel:
    """The last verdicts with their reasons, the latest first, and how to ask for an audit."""
    verdicts = list(reversed(status.get("verdicts") or ()))
    lines = [printable(str(one.get("text", ""))) for one in verdicts] or ["none yet"]
    if any(one.get("outcome") == "rejected" for one in verdicts):
        lines.append("A refusal was wrong? `barnraise worker appeal` asks for an audit, once a day.")
    return Panel(name="verdicts", title="last verdicts", lines=tuple(lines))


def rules_line(status: Status) -> str:
    """What is wrong with the rules' file; empty: nothing is."""
    return printable(str(status.get("rules_trouble") or ""))


def bar(share: float, width: int) -> str:
    """How much of something is done."""
    full = round(max(0.0, min(1.0, share)) * width)
    return f"[{'#' * full}{'.' * (width - full)}]"


def sparkline(values: Sequence[float], width: int, *, plain: bool = False) -> str:
    """The latest `width` values, the lowest at the bottom. `plain`: in ASCII."""
    bars = _ASCII_BARS if plain else _BARS
    shown = values[-width:]
    low, high = min(shown), max(shown)
    span = high - low
    return "".join(bars[round((value - low) / span * (len(bars) - 1)) if span > 0.0 else 0] for value in shown)
