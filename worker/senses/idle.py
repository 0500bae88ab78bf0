"""How long nobody has used keyboard or mouse: the sources in the order in which they are believed.

Decides the order, and that input is what counts, never how busy the processor is. X11 is not asked on Wayland, where it
sees only what goes to X windows; the compositor itself is asked there. Terminals are only where there is no screen at
all. The calls for Windows and macOS are written from their documentation and were never run there.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from worker.senses.bus import BusIdle
from worker.senses.sense import Senseless
from worker.senses.wayland import WaylandIdle
from worker.senses.x11 import X11Idle

IdleSource = tuple[str, Callable[[], float]]
"""What it is called, and how many seconds it says; Senseless where it does not work."""


class IdleSense:
    """The first source that works, until it works no more; a `Sense`."""

    fields = frozenset({"idle_s"})

    def __init__(self, sources: Sequence[IdleSource] | None = None) -> None:
        self._sources = tuple(sources_here() if sources is None else sources)
        self.source = ""
        """Which one answered last."""

    def read(self) -> dict[str, object]:
        """Seconds since the last input."""
        told = []
        for name, idle_s in sorted(self._sources, key=lambda each: each[0] != self.source):
            try:
                seconds = idle_s()
            except Senseless as why:
                told.append(f"{name}: {why}")
                continue
            self.source = name
            return {"idle_s": seconds, "idle_source": name}
        self.source = ""
        raise Senseless(f"nothing tells when keyboard and mouse were last used ({'; '.join(told)})")


def sources_here(environment: Mapping[str, str] | None = None) -> list[IdleSource]:
    """Those that this system may have."""
    environment = os.environ if environment is None else environment
    if sys.platform == "win32":
        return [("Windows", of_windows)]
    if sys.platform == "darwin":
        return [("macOS", of_macos)]
    bus = BusIdle()
    sources: list[IdleSource] = [("GNOME", bus.of_mutter), ("KDE", bus.of_screen_saver)]
    if is_wayland(environment):
        sources.append(("Wayland", WaylandIdle(environment).idle_s))
    else:
        sources.append(("X11", X11Idle(environment).idle_s))
    sources.append(("logind", bus.of_logind))
    if not has_screen(environment):
        sources.append(("terminals", of_terminals))
    return sources


def is_wayland(environment: Mapping[str, str]) -> bool:
    """Whether the desktop is Wayland's."""
    return bool(environment.get("WAYLAND_DISPLAY")) or environment.get("XDG_SESSION_TYPE") == "wayland"


def has_screen(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether somebody may sit at a desktop of this machine."""
    if environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"):
        return True
    return any(root.glob("tmp/.X11-unix/X*")) or any(root.glob("run/user/*/wayland-*"))


def of_terminals(root: Path = Path("/dev"), wall: Callable[[], float] = time.time) -> float:
    """Since anything was typed in a terminal: when its device was last read. For machines without a screen."""
    typed = []
    for path in (*root.glob("pts/[0-9]*"), *root.glob("tty[0-9]*")):
        try:
            typed.append(path.stat().st_atime)
        except OSError:
            continue
    if not typed:
        raise Senseless("there is no terminal")
    return max(0.0, wall() - max(typed))


def of_windows() -> float:
    """GetLastInputInfo; its clock, of milliseconds since the start, begins again after 49.7 days. Never run there."""

    class LastInput(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("tick_ms", ctypes.c_uint))

    windows = getattr(ctypes, "windll", None)
    if windows is None:
        raise Senseless("this is not Windows")
    last = LastInput(size=ctypes.sizeof(LastInput))
    if not windows.user32.GetLastInputInfo(ctypes.byref(last)):
        raise Senseless("Windows does not tell when keyboard and mouse were used")
    return float((windows.kernel32.GetTickCount() - last.tick_ms) % 2**32) / 1000.0


def of_macos() -> float:
    """HIDIdleTime of the input system, in nanoseconds, as `ioreg` prints it. Never run there."""
    try:
        command = ["/usr/sbin/ioreg", "-c", "IOHIDSystem", "-d", "4", "-S"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=2.0, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        raise Senseless("macOS does not tell when keyboard and mouse were used") from None
    found = re.search(r'"HIDIdleTime"\s*=\s*(\d+)', said)
    if found is None:
        raise Senseless("macOS does not tell when keyboard and mouse were used")
    return int(found[1]) / 1e9
