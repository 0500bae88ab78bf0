"""Putting the service in place, taking it away, and saying how it stands, through each system's own program.

Decides where the file lies and what is called in which order. Holds always: everything is the user's own, nothing asks
for more rights; what is not there is nothing to remove. Touches one file, and runs systemctl, launchctl or schtasks.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError
from worker.crew import devices_of
from worker.rejoin import home_root
from worker.service.texts import (
    LAUNCHD_LABEL,
    NAME,
    WINDOWS_TASK,
    ServiceTerms,
    launchd_plist,
    systemd_unit,
    windows_task,
)

GRAPHICAL = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "XDG_SESSION_ID")
"""By which a rule about idleness finds the session; most desktops tell the user's manager themselves."""

_NO_NAMESPACES = {
    "kernel/unprivileged_userns_clone": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
    "user/max_user_namespaces": "0",
}

ProgramCall = Callable[[Sequence[str]], "ProgramEnd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnd:
    """How a program ended."""

    code: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """How the service stands."""

    manager: str
    file: str
    """Where the system is told of it; empty where it keeps that itself."""
    installed: bool
    running: bool
    at_boot: bool | None
    """Whether it starts without anybody logging in; None where that is not known."""
    words: str


def run_program(command: Sequence[str]) -> ProgramEnd:
    """Run it to its end; a program that is not there ends with 127."""
    if shutil.which(command[0]) is None:
        return ProgramEnd(code=127, text=f"{command[0]} is not on this machine")
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    return ProgramEnd(code=done.returncode, text=(done.stdout + done.stderr).strip())


def terms_of(home: Path | None, run: str, gpus: str = "") -> ServiceTerms:
    """A worker of this very installation; `run` and `gpus` as for `join`, without an invite."""
    if gpus:
        devices_of(gpus)  # a mistake is told now, and not at the next login
    if "#" in run and "." in run.rpartition("#")[2]:
        raise ConfigError("a service takes no join link, which other users could read: join once, then install it")
    root = home_root(home).absolute()
    command = [sys.executable, "-m", "barnraise", "worker", "join", *([run] if run else []), "--output=plain"]
    if gpus:
        command.append(f"--gpus={gpus}")
    if home is not None:
        command.append(f"--home={root}")
    return ServiceTerms(
        command=tuple(command), home=root, log=root / "worker.log", namespaces=_has_namespaces(Path("/proc/sys"))
    )


def _has_namespaces(sysctl: Path) -> bool:
    """Whether users may have namespaces: unless Debian's switch, or Ubuntu's, or everybody's says no."""
    for name, forbidden in _NO_NAMESPACES.items():
        try:
            if (sysctl / name).read_text().strip() == forbidden:
                return False
        except OSError:
            continue
    return True


class Systemd:
    """The user's own manager on Linux."""

    def __init__(self, call: ProgramCall = run_program, config: Path | None = None) -> None:
        self._call = call
        base = config or Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        self.path = base / "systemd" / "user" / f"{NAME}.service"

    def text(self, terms: ServiceTerms) -> str:
        """What is written."""
        return systemd_unit(terms)

    def install(self, terms: ServiceTerms, *, linger: bool) -> ServiceState:
        """Write the unit, start it now and at each login, or, with `linger`, at each boot."""
        Path(terms.home).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text(terms))
        present = [name for name in GRAPHICAL if name in os.environ]
        if present:
            self._call(["systemctl", "--user", "import-environment", *present])
        self._must(["systemctl", "--user", "daemon-reload"])
        self._must(["systemctl", "--user", "enable", "--now", f"{NAME}.service"])
        self._must(["systemctl", "--user", "restart", f"{NAME}.service"])
        if linger:
            self._must(["loginctl", "enable-linger"])
        return self.status()

    def remove(self) -> ServiceState:
        """Stop it, and forget it; what the worker keeps stays."""
        if self.path.exists():
            self._call(["systemctl", "--user", "disable", "--now", f"{NAME}.service"])
            self.path.unlink()
            self._call(["systemctl", "--user", "daemon-reload"])
        return self.status()

    def status(self) -> ServiceState:
        """As the manager says."""
        found = self._call(["systemctl", "--user", "is-active", f"{NAME}.service"])
        running = found.code == 0
        lingers = self._call(["loginctl", "show-user", getpass.getuser(), "--property=Linger", "--value"])
        words = "active" if running else (found.text.splitlines() or ["not known to systemd"])[0]
        return ServiceState(
            manager="systemd --user",
            file=str(self.path),
            installed=self.path.exists(),
            running=running,
            at_boot=lingers.text.strip() == "yes" if lingers.code == 0 else None,
            words=f"{words}; its lines: journalctl --user -u {NAME}",
        )

    def _must(self, command: Sequence[str]) -> None:
        _must(self._call, command)


class Launchd:
    """The user's session on a Mac."""

    def __init__(self, call: ProgramCall = run_program, agents: Path | None = None) -> None:
        self._call = call
        self.path = (agents or Path.home() / "Library" / "LaunchAgents") / f"{LAUNCHD_LABEL}.plist"
        self._domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"

    def text(self, terms: ServiceTerms) -> str:
        """What is written."""
        return launchd_plist(terms)

    def install(self, terms: ServiceTerms, *, linger: bool) -> ServiceState:
        """Write the agent, and load it; a Mac starts agents at login alone."""
        if linger:
            raise ConfigError("a launchd agent starts at login: without one there is no session to run it in")
        Path(terms.home).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._call(["launchctl", "bootout", f"{self._domain}/{LAUNCHD_LABEL}"])  # an earlier one
        self.path.write_text(self.text(terms))
        _must(self._call, ["launchctl", "bootstrap", self._domain, str(self.path)])
        return self.status()

    def remove(self) -> ServiceState:
        """Unload it, and forget it."""
        if self.path.exists():
            self._call(["launchctl", "bootout", f"{self._domain}/{LAUNCHD_LABEL}"])
            self.path.unlink()
        return self.status()

    def status(self) -> ServiceState:
        """As launchd says."""
        found = self._call(["launchctl", "print", f"{self._domain}/{LAUNCHD_LABEL}"])
        running = found.code == 0 and "state = running" in found.text
        return ServiceState(
            manager="launchd",
            file=str(self.path),
            installed=self.path.exists(),
            running=running,
            at_boot=False,
            words="running" if running else "not running",
        )


class WindowsTask:
    """The user's task scheduler."""

    def __init__(self, call: ProgramCall = run_program, folder: Path | None = None) -> None:
        self._call = call
        self.path = (folder or home_root(None)) / "worker-task.xml"

    def text(self, terms: ServiceTerms) -> str:
        """What is written."""
        return windows_task(terms, getpass.getuser())

    def install(self, terms: ServiceTerms, *, linger: bool) -> ServiceState:
        """Hand the task over, and start it."""
        if linger:
            raise ConfigError("a task without a login would need your password kept: log in, or use an account's own")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text(terms), encoding="utf-16")
        _must(self._call, ["schtasks", "/Create", "/F", "/TN", WINDOWS_TASK, "/XML", str(self.path)])
        _must(self._call, ["schtasks", "/Run", "/TN", WINDOWS_TASK])
        return self.status()

    def remove(self) -> ServiceState:
        """End it, and take it out."""
        if self._call(["schtasks", "/Query", "/TN", WINDOWS_TASK]).code == 0:
            self._call(["schtasks", "/End", "/TN", WINDOWS_TASK])
            _must(self._call, ["schtasks", "/Delete", "/F", "/TN", WINDOWS_TASK])
        self.path.unlink(missing_ok=True)
        return self.status()

    def status(self) -> ServiceState:
        """As the scheduler says."""
        found = self._call(["schtasks", "/Query", "/TN", WINDOWS_TASK, "/FO", "CSV", "/NH"])
        running = found.code == 0 and "Running" in found.text
        return ServiceState(
            manager="Task Scheduler",
            file="",
            installed=found.code == 0,
            running=running,
            at_boot=False,
            words="running" if running else "not running",
        )


ServiceManager = Systemd | Launchd | WindowsTask


def manager_here(call: ProgramCall = run_program, platform: str = sys.platform) -> ServiceManager:
    """The one of this system; ConfigError where there is none that is known here."""
    if platform == "darwin":
        return Launchd(call)
    if platform == "win32":
        return WindowsTask(call)
    if shutil.which("systemctl") is None:
        raise ConfigError(
            "this system has no systemd, and no other way to start a worker with a session is known here: start "
            "`barnraise worker join` by whatever starts your programs, or in a container"
        )
    return Systemd(call)


def _must(call: ProgramCall, command: Sequence[str]) -> None:
    found = call(command)
    if found.code != 0:
        what = " ".join(command[:3])
        raise ConfigError(f"`{what}` did not go through: {found.text.splitlines()[0] if found.text else found.code}")
