"""A simulation's folder: which files in it are a simulation's, and when those of an earlier one go.

Decides that a result is never replaced unless that was asked for, and then only once the new simulation has begun:
until `settle`, what was there lies in `.former/` and comes back with `give_up`, or at the next start where the process
was killed. Files that no simulation left there are never touched. Holds a lock while a simulation works in the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigError
from protocol.file_lock import lock_file
from protocol.folders import telling_folder_trouble

MARKER = ".barnraise-simulation"
RESULTS = ("report.json", "loss.png", "health.json", "health.png", "events.jsonl", "checkpoint")
WORK = "work"
_FORMER, _LEAVING = ".former", ".leaving"


class OutFolder:
    """The folder of one simulation, from `begin` to `close`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._lock = -1
        self._made: list[Path] = []

    def begin(self, *, replace: bool = False) -> tuple[str, ...]:
        """Make the folder ready; the names that an earlier simulation left and that `settle` will remove."""
        if self._out.exists() and not self._out.is_dir():
            raise ConfigError(f"{self._out} is not a folder")
        with telling_folder_trouble(self._out):
            self._require_idle()
            self._recover()
            found = self._found()
            if found:
                self._require_ours(found, replace=replace)
            self._made = [path for path in (self._out, *self._out.parents) if not path.exists()]
            (self._out / WORK if not found else self._out / _FORMER).mkdir(parents=True)
            for name in found:
                (self._out / name).rename(self._out / _FORMER / name)
            (self._out / WORK).mkdir(exist_ok=True)
            self._lock = os.open(self._out / WORK / MARKER, os.O_RDWR | os.O_CREAT, 0o600)
            lock_file(self._lock)
        return tuple(found)

    def settle(self) -> None:
        """The new simulation has begun: what was there before goes."""
        former, leaving = self._out / _FORMER, self._out / _LEAVING
        if former.exists():
            former.rename(leaving)  # so that what is half removed is never put back
            shutil.rmtree(leaving, ignore_errors=True)

    def give_up(self) -> None:
        """The new simulation could not begin: all is as it was before `begin`."""
        self.close()
        _remove(self._out, (*RESULTS, WORK))
        self._restore()
        for path in self._made:  # the innermost first, and only what is empty
            with contextlib.suppress(OSError):
                path.rmdir()

    def close(self) -> None:
        """Let others in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _found(self) -> list[str]:
        return [name for name in (*RESULTS, WORK) if os.path.lexists(self._out / name)]

    def _require_idle(self) -> None:
        marker = self._out / WORK / MARKER
        if not marker.exists():
            return
        with marker.open("r+b") as file:
            try:
                lock_file(file.fileno())
            except OSError as error:
                raise ConfigError(f"another simulation works in {self._out} now: choose another folder") from error

    def _require_ours(self, found: Sequence[str], *, replace: bool) -> None:
        names = ", ".join(found)
        if not (self._out / WORK / MARKER).exists():
            raise ConfigError(f"{self._out} holds {names} that no simulation left there: choose another folder")
        if not replace:
            raise ConfigError(
                f"{self._out} holds an earlier simulation ({names}): choose another folder, or replace it with --force"
            )

    def _recover(self) -> None:
        """After a process that was killed before `settle`: its beginnings go, what was there comes back."""
        shutil.rmtree(self._out / _LEAVING, ignore_errors=True)
        former = self._out / _FORMER
        if former.is_dir():
            _remove(self._out, [name for name in self._found() if os.path.lexists(former / name)])
            self._restore()

    def _restore(self) -> None:
        former = self._out / _FORMER
        if former.is_dir():
            for path in sorted(former.iterdir(), key=lambda one: one.name == WORK):
                path.rename(self._out / path.name)
            former.rmdir()


def next_free(folder: Path) -> Path:
    """`folder` where nothing is there yet, or else `folder-2`, `folder-3` and so on."""
    chosen, number = folder, 1
    while os.path.lexists(chosen):
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    return chosen


def _remove(out: Path, names: Sequence[str]) -> None:
    for name in names:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
