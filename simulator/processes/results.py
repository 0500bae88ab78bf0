"""Leaves a simulation's results in its folder: report.json, loss.png, health.json and .png, checkpoint/, events.jsonl.

Decides what is copied from the run's folder; works on whatever is there, since it also runs after Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from barnraise.charts.loss import Fates, LossPicture, draw_loss
from barnraise.versions import installed_versions
from simulator.processes.crew import Crew
from simulator.processes.health import write_health
from simulator.processes.launcher import COORDINATOR
from simulator.processes.memory import PeakMemory
from simulator.processes.observer import Observation
from simulator.processes.options import SimulationOptions
from simulator.processes.report import SimulationReport
from simulator.processes.setup import recipe_of

CHECKPOINT = "checkpoint"


def write_results(
    options: SimulationOptions,
    seen: Observation,
    crew: Crew,
    *,
    outcome: str,
    why: str,
    lone: Mapping[str, float] | None,
    peaks: PeakMemory,
    wall_s: float,
) -> SimulationReport:
    """Write everything; returns the report."""
    run = options.work / "run"
    report = _report(
        options,
        seen,
        crew,
        outcome=outcome,
        why=why,
        lone=lone or {},
        peaks=peaks,
        wall_s=wall_s,
        checkpoint=CHECKPOINT if keep_checkpoint(run / "checkpoints", options.out / CHECKPOINT) else None,
    )
    merge_events(run / "events.jsonl", options.work / "vanishings", options.out / "events.jsonl")
    report.write(options.out)
    draw_loss(loss_picture(report), options.out / "loss.png")
    if outcome != "finished" or report.checkpoint is None:
        return report
    report = dataclasses.replace(report, health=write_health(options, options.out / CHECKPOINT))
    report.write(options.out)
    return report


def _report(
    options: SimulationOptions,
    seen: Observation,
    crew: Crew,
    *,
    outcome: str,
    why: str,
    lone: Mapping[str, float],
    peaks: PeakMemory,
    wall_s: float,
    checkpoint: str | None,
) -> SimulationReport:
    recipe = recipe_of(options)
    losses, liars = seen.val_loss, set(crew.byzantine_names)
    last, alone = (losses[-1] if losses else None), lone.get("loss")
    return SimulationReport(
        outcome=outcome,
        why=why,
        workers=options.workers,
        byzantine=options.byzantine,
        byzantine_workers=crew.byzantine_names,
        trusted_workers=tuple(sorted(one.name for one in seen.workers if one.trusted)),
        attack=options.attack if options.byzantine else None,
        attack_strength=crew.attack_strength,
        undefended=options.undefended,
        dropout=options.dropout,
        dropouts=crew.dropouts,
        seed=options.seed,
        rounds_planned=options.rounds,
        rounds_closed=len(seen.rounds),
        inner_steps=recipe.inner_steps,
        batch_sequences=recipe.batch_sequences,
        sequence_length=options.sequence_length,
        val_loss=losses,
        val_loss_first=losses[0] if losses else None,
        val_loss_last=last,
        lone_val_loss=alone,
        lone_margin=None if alone is None or last is None else alone - last,
        leases_granted=seen.counter("leases_granted"),
        leases_expired=seen.counter("leases_expired"),
        leases_returned=seen.counter("leases_returned"),
        submissions_accepted=seen.counter("submissions_accepted"),
        submissions_rejected=seen.rejections,
        byzantine_accepted=sum(one.accepted for one in seen.workers if one.name in liars),
        byzantine_rejected=sum(one.rejected for one in seen.workers if one.name in liars),
        honest_rejected=sum(one.rejected for one in seen.workers if one.name not in liars),
        bytes_up=seen.bytes_up,
        bytes_down=seen.bytes_down,
        coordinator_peak_bytes=peaks.of(COORDINATOR),
        worker_peak_bytes=peaks.of(*(member.spec.name for member in crew.members)),
        wall_s=round(wall_s, 3),
        lone_wall_s=lone.get("wall_s"),
        train_wall_s=seen.train_wall_s,
        checkpoint=checkpoint,
        rounds=seen.rounds,
        versions=installed_versions(),
    )


def keep_checkpoint(checkpoints: Path, target: Path) -> bool:
    """Copy the newest of `checkpoints` to `target`; whether there was one."""
    found = sorted(path.parent for path in checkpoints.glob("version-*/config.json"))
    if not found:
        return False
    shutil.copytree(found[-1], target, dirs_exist_ok=True)
    return True


def merge_events(coordinator: Path, vanishings: Path, target: Path) -> None:
    """One line for each event and command of the coordinator, and for each worker that vanished, by the calendar."""
    lines = [(float(json.loads(line)["wall_s"]), line) for line in _lines(coordinator)]
    for notes in sorted(vanishings.glob("*.jsonl")):
        for line in _lines(notes):
            data = json.loads(line)
            wall_s = float(data.pop("wall_s"))
            data = {"name": notes.stem, **data}
            note = {"wall_s": wall_s, "kind": "simulator", "name": "WorkerVanished", "data": data}
            lines.append((wall_s, json.dumps(note, separators=(",", ":")) + "\n"))
    lines.sort(key=lambda entry: entry[0])  # stable: what happened at one moment stays in its order
    with target.open("w", encoding="utf-8") as file:
        file.writelines(line for _, line in lines)


def _lines(path: Path) -> Iterator[str]:
    """Whole lines of a file; nothing where there is none, and no half line that a killed process left."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if line.endswith("\n"))


def loss_picture(report: SimulationReport) -> LossPicture:
    """What `loss.png` shows of `report`."""
    return LossPicture(
        title=_title(report),
        val_loss=report.val_loss,
        lone_val_loss=report.lone_val_loss,
        rounds=[
            Fates(round=one.round, accepted=one.accepted, rejected=one.rejected, expired=one.expired)
            for one in report.rounds
        ],
    )


def _title(report: SimulationReport) -> str:
    parts = [f"{report.workers} workers", f"{report.dropout:.0%} dropout a round"]
    if report.byzantine:
        parts.append(f"{report.byzantine} {report.attack}")
    parts.append("undefended: plain mean" if report.undefended else "screened")
    parts.append(f"seed {report.seed}")
    return ", ".join(parts)
