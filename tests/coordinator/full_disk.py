"""What `test_full_disk` runs inside a name space of its own: a run on a disk of a few megabytes, filled, freed, made
read-only. Prints one JSON object with what was seen."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from barnraise.cli.app import run as run_command
from coordinator.engine.events import Ticked
from coordinator.engine.records import event_to_json
from coordinator.run.backup import back_up
from coordinator.run.folder import RunFolder
from coordinator.run.verify import verify_run
from coordinator.store.journal import Journal
from protocol.errors import StorageTrouble


def main(pristine: Path, disk: Path) -> None:
    """Mount, fill, free, write-protect; `disk` is an empty folder."""
    needed = sum(path.stat().st_size for path in pristine.rglob("*") if path.is_file())
    _mount("-t", "tmpfs", "-o", f"size={needed + (3 << 20)}", "tmpfs", str(disk))
    shutil.copytree(pristine, disk / "run")
    run = RunFolder.open(disk / "run")
    journal = Journal.open(run.journal_path)
    journal.append([_tick()])
    _fill(disk / "filler")
    seen: dict[str, Any] = {"append": _until_refused(journal), "position_when_full": journal.last_position}
    store = run.artifacts().blocks
    seen["put"] = _refused(lambda: store.put(b"x" * (1 << 20)))
    seen["backup"] = _refused(lambda: back_up(run, disk / "backup"))
    seen["left_behind"] = [str(path) for path in disk.rglob(".*")] + [str(path) for path in disk.glob("backup")]
    (disk / "filler").unlink()
    seen["position_after"] = journal.append([_tick()])
    journal.close()
    store.put(b"x" * (1 << 20))
    seen["problems"] = [problem for check in verify_run(run) for problem in check.problems]
    _mount("-o", "remount,ro", str(disk))
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        seen["exit_code"] = run_command(["coordinator", "run", str(disk / "run")])
    seen["read_only"] = told.getvalue()
    print(json.dumps(seen))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _tick() -> str:
    return event_to_json(Ticked(at_s=time.time()))


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def _until_refused(journal: Journal) -> str:
    return _refused(lambda: [journal.append([_tick()] * 100) for _ in range(1000)])


def _refused(call: Any) -> str:
    try:
        call()
    except StorageTrouble as error:
        return str(error)
    return "nothing was refused"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
