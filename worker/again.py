"""Starting the worker's process again, when its device was lost: a driver that was reset, a machine that slept.

Decides how often: a process that trained for a while before its device went away is started again as if it were the
first; of those that lose it soon, three in a row. A context of CUDA is lost for the whole process, so nothing less than
another one helps; the lease is resumed from what is kept of it (worker/train/lease_state.py). Touches the environment
of the process that comes, and replaces this one by it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final

from worker.messages import EXIT_FAILED
from worker.options import WorkerOptions
from worker.rejoin import home_root, links_of
from worker.words import say

STARTED: Final = "BARNRAISE_STARTED_AGAIN"
"""How often in a row, in the environment."""
MOST_IN_A_ROW: Final = 3
SOON_S: Final = 600.0
"""A device that is lost later was good for something."""


def times_started(environment: Mapping[str, str], lived_s: float) -> int:
    """Which start in a row the next one is, 1 for the first."""
    before = environment.get(STARTED, "")
    return int(before) + 1 if lived_s < SOON_S and before.isdecimal() and len(before) < 4 else 1


def arguments_of(options: WorkerOptions, way_back: str) -> list[str]:
    """`barnraise worker join`, by a machine that is enrolled by now and was joined with these options.

    The link may have been read from standard input, or taken out of a folder; `way_back` stands in its place, without
    the invite, since other users can see a command line; empty: all runs that the machine is enrolled in.
    """
    given: list[tuple[str, object]] = [
        ("--home", options.home),
        ("--beside", options.first_home),
        ("--name", options.name or None),
        ("--team", options.team),
        ("--device", options.device),
        ("--columns", options.max_columns),
        ("--memory", options.memory_bytes),
        ("--disk", options.disk_bytes),
        ("--threads", options.threads),
        ("--progress-writes", options.progress_bytes_a_day),
        ("--share", options.share_bytes_per_s),
        ("--share-port", options.share_port or None),
        ("--p2p-port", options.p2p_port or None),
        ("--output", options.output),
    ]
    measures = {None: [], True: ["--measure"], False: ["--no-measure"]}[options.measures]
    way = [
        *([way_back] if way_back else []),
        *(["--p2p"] if options.p2p else []),
        *(["--be-relay"] if options.be_relay else []),
        *(["--archive"] if options.archive else []),
    ]
    return ["worker", "join", *way, *measures, *(f"{name}={value}" for name, value in given if value is not None)]


def go_on(options: WorkerOptions, lived_s: float, become: Callable[[list[str], Mapping[str, str]], int]) -> int:
    """After a worker of these options ended with EXIT_DEVICE_LOST, having lived so long; the exit code, if any."""
    times = times_started(os.environ, lived_s)
    if times > MOST_IN_A_ROW:
        print(say("started_too_often", times=times), file=sys.stderr)
        return EXIT_FAILED
    links = links_of(options.link, home_root(options.first_home or options.home))
    command = arguments_of(options, f"{links[0].address}/#{links[0].fingerprint[:12]}" if len(links) == 1 else "")
    return become([sys.executable, "-m", "barnraise", *command], {**os.environ, STARTED: str(times)})


def become(command: list[str], environment: Mapping[str, str]) -> int:
    """Be that process. On Windows, where a process cannot: wait for it, and end as it does."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], command, dict(environment))  # noqa: S606  # our own interpreter
    return subprocess.run(command, env=dict(environment), check=False).returncode
