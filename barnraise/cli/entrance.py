"""`barnraise coordinator doctor`: why nobody gets in, told from the coordinator's own machine.

Decides how it is told; coordinator/run/doctor.py looks.
"""

from __future__ import annotations

import dataclasses

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json


def doctor(folder: RunArgument, as_json: Json = False) -> int:
    """Look whether volunteers can get in: names, port, clock, disk, certificate. Exit code 1: something is wrong."""
    from coordinator.run.doctor import Concern, examine
    from coordinator.run.folder import RunFolder

    found = examine(RunFolder.open(folder))
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        wide = max(len(one.name) for one in found)
        for one in found:
            print(f"{one.concern:<7}  {one.name:<{wide}}  {one.told}")
            if one.advice:
                print(f"{'':<7}  {'':<{wide}}  -> {one.advice}")
    return 1 if any(one.concern is Concern.TROUBLE for one in found) else 0
