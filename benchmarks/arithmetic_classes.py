"""Audits of long leases between machines that round otherwise: what was said of the worker before, and what is now.

    python -m benchmarks.arithmetic_classes [--quick] [--json FILE]

Each lease is computed really, by a worker and by an auditor whose arithmetic class differs from the worker's or does
not: torch with other numbers of threads, held to its plainest kernels (in place of another kind of processor), or
multiplying in bf16. `apart`: how far what the worker sends lies from what the auditor comes to as it stands, through
the codec bf16, relative L2. `before`: what an audit made of that by the tolerance alone; two such are a ban. `now`:
what it makes of it by the engine's rule. `matched`: the distance once the auditor computes in the worker's class where
it can, as the coordinator's own replay does; and what follows from that. One seed.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.byzantine_run import prepared
from benchmarks.replay_noise import BATCH, FRESH, TRAINED, NoiseBench, NoiseCase, plain_kernels
from benchmarks.replay_noise_leases import NoiseTask, apart
from benchmarks.report import Cell, machine, parse_args, print_rows
from coordinator.datasets import Dataset
from coordinator.engine.arithmetic import is_decisive
from coordinator.engine.config import AuditConfig
from coordinator.engine.lease import GrantedLease
from coordinator.engine.rows import LeaseRecord
from protocol.ids import WorkerId

CODEC = "bf16"
_COLUMNS = [
    {"heading": heading, "shows": shows}
    for heading, shows in (
        ("worker", "{worker}"),
        ("auditor", "{auditor}"),
        ("model", "{model}"),
        ("optimizer", "{optimizer}"),
        ("inner steps", "{steps}"),
        ("apart", "{apart:.1e}"),
        ("said before", "{before}"),
        ("said now", "{now}"),
        ("in the worker's class, where it can", "{matched:.1e}"),
        ("said then", "{then}"),
    )
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """A lease, who computed it and who computes it again."""

    worker: str
    auditor: str
    case: NoiseCase
    threads: tuple[int, int] = (1, 1)
    """The worker's and the auditor's."""
    plain: bool = False
    """The worker's process is held to the plainest kernels."""
    auditor_fp32: bool = False
    lie: float = 1.0
    """How many times the lease's rates the worker trains at."""


def meetings(*, quick: bool) -> Iterator[Meeting]:
    """All rows."""

    def case(model: str, steps: int, compute: str = "fp32") -> NoiseCase:
        return NoiseCase(model=model, optimizer="muon", compute=compute, base=TRAINED, steps=steps)

    long = 50 if quick else 200
    spread = dataclasses.replace(case("tiny", long), base=FRESH)  # threads share nothing of the micro model
    yield Meeting(worker="1 thread", auditor="2 threads", case=spread, threads=(1, 2))
    yield Meeting(worker="other kernels", auditor="usual kernels", case=case("micro", long), plain=True)
    yield Meeting(worker="bf16", auditor="fp32", case=case("micro", 10, "bf16"), auditor_fp32=True)
    yield Meeting(worker="bf16, other kernels", auditor="bf16", case=case("micro", 10, "bf16"), plain=True)
    yield Meeting(worker="lies: rates 2 % higher", auditor="same class", case=case("micro", long), lie=1.02)
    yield Meeting(worker="lies, other kernels", auditor="usual kernels", case=case("micro", long), plain=True, lie=1.02)


def row_of(bench: NoiseBench, plain: Any, meeting: Meeting) -> dict[str, Cell]:
    """Compute it, and ask the engine's rule."""
    task = bench.task(meeting.case, 0, start=1_000_000)
    theirs = task if meeting.lie == 1.0 else task.faster(meeting.lie)
    own = dataclasses.replace(task, compute="fp32") if meeting.auditor_fp32 else task
    if meeting.plain:
        sent, said = plain.submit(NoiseTask.computed_in, theirs, threads=meeting.threads[0]).result()
    else:
        sent, said = theirs.computed_in(threads=meeting.threads[0])
    again, own_class = own.computed_in(threads=meeting.threads[1])
    like, like_class = own.computed_in(threads=meeting.threads[1], wanted=said)
    found, then = apart(task, sent, again, CODEC), apart(task, sent, like, CODEC)
    tolerance = AuditConfig().tolerance
    return {
        "worker": meeting.worker,
        "auditor": meeting.auditor,
        "model": meeting.case.model,
        "optimizer": meeting.case.optimizer,
        "steps": meeting.case.steps,
        "apart": found,
        "before": "passed" if found <= tolerance else "not reproduced",
        "now": said_of(task, found, said, own_class),
        "matched": then,
        "then": said_of(task, then, said, like_class),
        "worker_class": said,
        "auditor_class": own_class,
        "matched_class": like_class,
    }


def said_of(task: NoiseTask, distance: float, worker: str, auditor: str) -> str:
    """What the engine makes of an auditor's answer."""
    audits, lease = AuditConfig(), task.lease
    values = {field.name: getattr(lease, field.name) for field in dataclasses.fields(lease)}
    granted = GrantedLease(**values, worker=WorkerId("worker"), granted_at_s=0.0, deadline_s=1.0, spare=False)
    record = LeaseRecord(lease=granted, arithmetic=worker, micro_batch=BATCH)
    if distance <= audits.tolerance:
        return "passed"
    return "not reproduced" if is_decisive(audits, record, auditor, BATCH) else "could not decide"


def measured(wanted: list[Meeting]) -> list[dict[str, Cell]]:
    """All rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="barnraise-classes-") as scratch, plain_kernels() as elsewhere:
        bench = NoiseBench(Dataset.open(prepared(Path(scratch))), elsewhere)
        rows = []
        for meeting in wanted:
            rows.append(row_of(bench, elsewhere, meeting))
            print(f"{len(rows)} of {len(wanted)}: {rows[-1]}", file=sys.stderr, flush=True)
        return rows


def main() -> int:
    """Measure, and show."""
    args = parse_args((__doc__ or "").partition("\n")[0])
    rows = measured(list(meetings(quick=args.quick)))
    print(machine())
    print_rows(rows)
    if args.json is not None:
        result = {
            "command": "python -m benchmarks.arithmetic_classes",
            "machine": f"{machine()}, torch {torch.__version__}, beside other work",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "columns": _COLUMNS,
            "rows": rows,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
