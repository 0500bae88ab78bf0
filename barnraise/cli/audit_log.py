"""The operator's view of every judgement: `barnraise coordinator audit-log`.

Decides how lines are shown; `coordinator/` keeps them. Reads the run folder, whether the run is served or not.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, print_table

if TYPE_CHECKING:
    from coordinator.store.audit_log import AuditLine

_WHY_CHARACTERS = 100
_COLUMNS = ("when", "round", "worker", "lease", "stage", "figure", "threshold", "verdict", "by", "why")
STAGES = "envelope, norms, gain, review, audit or trust"


def audit_log(
    folder: RunArgument,
    worker: Annotated[str, typer.Option(help="Of this worker: its name, or the beginning of its id.")] = "",
    round_: Annotated[int | None, typer.Option("--round", min=0, help="Of this round.")] = None,
    lease: Annotated[str, typer.Option(help="Of this lease.")] = "",
    stage: Annotated[str, typer.Option(help=f"Of this stage: {STAGES}.")] = "",
    most: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="The newest so many.")] = 100,
    as_json: Json = False,
) -> None:
    """What was judged of whom, at which stage, with figure, threshold and verdict; the newest last."""
    from coordinator.engine.stages import Stage
    from coordinator.run.folder import RunFolder
    from coordinator.store.audit_log import AuditLog
    from coordinator.store.people import said_in
    from protocol.errors import ConfigError
    from protocol.ids import WorkerId
    from protocol.pseudonyms import pseudonym

    if stage and stage not in set(Stage):
        raise ConfigError(f"--stage {stage}: expected {STAGES}")
    run = RunFolder.open(folder)
    names = said_in(run.registry_path).names
    log = AuditLog.read_only(run.audit_path)
    try:
        called = {one: names.get(WorkerId(one)) or pseudonym(one) for one in log.workers()}
        meant = next((one for one, name in called.items() if worker and name == worker), worker)
        found = log.latest(most=most, worker=meant, round_=round_, lease=lease, stage=stage)
    finally:
        log.close()
    lines = [dataclasses.replace(line, name=called.get(line.worker, "")) for line in found]
    if as_json:
        print_json([dataclasses.asdict(line) for line in lines])
    elif lines:
        print_table(_COLUMNS, [dict(zip(_COLUMNS, _row(line), strict=True)) for line in lines])
    else:
        print("nothing like that was judged")


def _row(line: AuditLine) -> tuple[str, ...]:
    when = f"{line.at_s:.0f} s" if line.wall_s is None else f"{datetime.fromtimestamp(line.wall_s):%m-%d %H:%M:%S}"
    why = line.why if len(line.why) <= _WHY_CHARACTERS else line.why[: _WHY_CHARACTERS - 1] + "…"
    figures = (_figure(line.figure), _figure(line.threshold))
    worker = line.name or line.worker[:8]
    return (when, str(line.round), worker, line.lease, line.stage, *figures, line.verdict, line.judge, why)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
