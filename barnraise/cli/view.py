"""`barnraise worker view`: the volunteer's worker, full-screen; and `worker run --view`, which starts one behind it.

Decides what is needed for it, and that the worker is a process of its own, which the end of the view leaves running.
Starts that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from barnraise.cli.rules import Home

STARTING_S = 60.0
"""Until a worker that was started answers: it takes some seconds to import what it needs."""
RUN_LOG = "run.log"
ANSWER_S = 5.0
SILENT = "silent: a worker is here and does not answer: this machine is very busy, or the worker was stopped"


def view(home: Home = None) -> None:
    """Watch the worker of this machine, full-screen: p pauses, r resumes, f finishes, q closes; it goes on without."""
    check_terminal()
    from barnraise.view.screen import show

    root = _root(home)
    show(lambda verb: asked(root, verb))
    print("the worker goes on; `barnraise worker leave` ends it, `barnraise worker view` shows it again")


def check_terminal() -> None:
    """ConfigError where nothing can be shown full-screen."""
    import importlib.util

    from protocol.errors import ConfigError

    if importlib.util.find_spec("textual") is None:
        raise ConfigError(
            "the full-screen view needs textual: install it with pip install 'barnraise[tui]'. `barnraise worker"
            " status` and `barnraise worker logs -f` say the same in lines"
        )
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise ConfigError("the view needs a terminal; `barnraise worker status` says the same in lines")


def run_behind(home: Path | None, gpus: str = "") -> None:
    """Start a worker in the background, unless one runs, and return once it answers."""
    import asyncio

    from protocol.errors import ConfigError

    root = _root(home)
    if asyncio.run(asked(root, "status")):
        return
    log = root / RUN_LOG
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "barnraise", "worker", "run", "--output=plain"]
    command += [f"--home={home}"] if home is not None else []
    command += [f"--gpus={gpus}"] if gpus else []
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    print("starting a worker …", flush=True)
    until_s = time.monotonic() + STARTING_S
    while not asyncio.run(asked(root, "status")):
        if worker.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines()
            raise ConfigError(f"the worker did not start: {said[-1] if said else 'it said nothing'}")
        if time.monotonic() > until_s:
            raise ConfigError(f"the worker does not answer after {STARTING_S:.0f} s; what it said is in {log}")
        time.sleep(0.3)


async def asked(root: Path, verb: str) -> list[dict[str, Any]]:
    """The answers of all workers of this home; a pause counts for those that are started later, too."""
    from protocol.errors import BarnraiseError
    from protocol.local_socket import NobodyListens, ask
    from worker.rules.file import PauseNote, note_pause
    from worker.siblings import run_folders

    if verb in {"pause", "resume"}:
        note_pause(root, PauseNote() if verb == "pause" else None)
    answers, folders = [], run_folders(root)
    for folder in folders:
        try:
            answers.append(await ask(folder / "control" / "socket", {"verb": verb}, timeout_s=ANSWER_S))
        except NobodyListens:
            continue
        except BarnraiseError:  # one that does not answer now may a second later
            answers.append({"says": SILENT})
    return answers


def _root(home: Path | None) -> Path:
    from worker.rejoin import home_root

    return home_root(home)
