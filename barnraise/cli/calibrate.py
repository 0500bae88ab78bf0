"""The operator's command that finds `audits.tolerance` for a run: `barnraise coordinator calibrate`.

Decides how it is told; `barnraise/calibration.py` measures. Changes the setting only where asked to, as `set` does.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import ProgressLine, print_json, print_table
from barnraise.cli.settings import say_changed

if TYPE_CHECKING:
    from barnraise.calibration import Calibration

_KEY = "audits.tolerance"


def calibrate(
    folder: RunArgument,
    leases: Annotated[int, typer.Option(min=1, max=1000, help="Leases to compute again; each takes eight times.")] = 4,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Inner steps of each; as many as the run's leases have by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; the coordinator's by default.")] = None,
    with_bf16: Annotated[
        bool, typer.Option("--with-bf16", help="The tolerance is to hold for workers whose GPUs multiply in bf16.")
    ] = False,
    set_: Annotated[bool, typer.Option("--set", help=f"Set {_KEY} to what follows, from the next round on.")] = False,
    as_json: Json = False,
) -> int:
    """Compute honest leases of the run again on this machine, and say which audits.tolerance follows."""
    from barnraise.calibration import calibrate as measure
    from barnraise.evaluation import chosen_device
    from coordinator.edge.operator_client import change_setting
    from coordinator.run.folder import RunFolder

    run = RunFolder.open(folder)
    where = str(chosen_device(device or run.settings().evaluation_device))
    with ProgressLine(quiet=as_json) as tell:
        found = measure(run, leases=leases, steps=steps, device=where, with_bf16=with_bf16, tell=tell)
    change, served = change_setting(run, _KEY, repr(found.tolerance)) if set_ and found.holds else (None, True)
    if as_json:
        changed = None if change is None else {**dataclasses.asdict(change), "served": served}
        above, below = found.margins(found.tolerance)
        derived = {"farthest_honest": found.farthest_honest, "nearest_lie": found.nearest_lie, "holds": found.holds}
        print_json({**dataclasses.asdict(found), **derived, "over_honest": above, "lie_over": below, "set": changed})
    else:
        _show(found)
    if change is not None:
        say_changed(folder, change, served=served, quiet=as_json)
    elif not as_json and found.holds and found.tolerance != found.tolerance_now:
        print(f"set it:     barnraise coordinator set {folder} {_KEY} {found.tolerance!r}")
    return 0 if found.holds else 1


def _show(found: Calibration) -> None:
    print(
        f"{found.leases} leases of {found.inner_steps} steps from version {found.version}, {found.optimizer}, "
        f"codec {found.codec}, on {found.device}: relative L2 distance from the replay"
    )
    rows = [
        {"what": one.what, "trunk": one.trunk, "worst column": one.columns, "": kind if one.counts else "not counted"}
        for kind, measured in (("honest", found.honest), ("lie", found.lies))
        for one in measured
    ]
    print_table(("what", "trunk", "worst column", ""), rows)
    for name, tolerance in (("follows", found.tolerance), ("is now", found.tolerance_now)):
        above, below = found.margins(tolerance)
        print(
            f"{_KEY} {name}: {tolerance:g}, {above:.3g} times the farthest honest lease; "
            f"the nearest lie is at {below:.3g} times it"
        )
    if not found.holds:
        print(
            f"no tolerance tells these lies from honest work: leave {_KEY} above {found.farthest_honest:.2g} and know "
            "that such lies pass, or have auditors of the workers' own kind",
            file=sys.stderr,
        )
