"""The desktop's and the system's message buses, by jeepney: idleness, and whether the connection is metered.

Decides nothing. One connection a bus, made when it is needed and again when it is lost; a question waits for a second
at most. Sources: org.gnome.Mutter.IdleMonitor, org.freedesktop.ScreenSaver (KDE), org.freedesktop.login1.Manager,
org.freedesktop.NetworkManager, each as its own documentation has it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from worker.senses.sense import Senseless

TIMEOUT_S: Final = 1.0
_METERED: Final = {1: True, 2: False, 3: True, 4: False}
"""NMMetered: yes, no, guessed yes, guessed no; 0 is unknown."""
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"


class Bus:
    """A connection to one of the two buses."""

    def __init__(self, which: Literal["SESSION", "SYSTEM"]) -> None:
        self._which = which
        self._link: Any = None

    def ask(self, name: str, path: str, interface: str, method: str, signature: str = "", *arguments: Any) -> Any:
        """The first value of the answer; Senseless where nobody answers."""
        try:
            from jeepney import DBusAddress, MessageType, new_method_call
            from jeepney.io.blocking import open_dbus_connection
        except ImportError:
            raise Senseless("jeepney is not installed, which speaks to the desktop") from None
        address = DBusAddress(path, bus_name=name, interface=interface)
        try:
            if self._link is None:
                self._link = open_dbus_connection(bus=self._which)
            message = new_method_call(address, method, signature or None, arguments)
            reply = self._link.send_and_get_reply(message, timeout=TIMEOUT_S)
        except Exception as error:  # jeepney's errors have no common class, and those of the socket come beside them
            self.close()
            raise Senseless(f"nobody answers on the {self._which.lower()} bus") from error
        if reply.header.message_type is MessageType.error or not reply.body:
            raise Senseless(f"{name} is not on the {self._which.lower()} bus")
        return reply.body[0]

    def property(self, name: str, path: str, interface: str, key: str) -> Any:
        """A property's value."""
        _, value = self.ask(name, path, _PROPERTIES, "Get", "ss", interface, key)
        return value

    def close(self) -> None:
        """Hang up; the next question connects again."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.close()
        self._link = None


class BusIdle:
    """How long nobody has used keyboard or mouse, as the desktop says it."""

    def __init__(
        self, session: Bus | None = None, system: Bus | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._session, self._system, self._wall = session or Bus("SESSION"), system or Bus("SYSTEM"), wall

    def of_mutter(self) -> float:
        """GNOME, on Wayland and X11."""
        path = "/org/gnome/Mutter/IdleMonitor/Core"
        idle_ms = self._session.ask("org.gnome.Mutter.IdleMonitor", path, "org.gnome.Mutter.IdleMonitor", "GetIdletime")
        return float(idle_ms) / 1000.0

    def of_screen_saver(self) -> float:
        """KDE, which tells milliseconds, on Wayland and X11. Elsewhere there is no such method."""
        name = "org.freedesktop.ScreenSaver"
        return float(self._session.ask(name, "/ScreenSaver", name, "GetSessionIdleTime")) / 1000.0

    def of_logind(self) -> float:
        """systemd's log-in manager: what desktops and terminals report to it. Coarse, and 0 while somebody is there."""
        name, path, interface = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
        if not self._system.property(name, path, interface, "IdleHint"):
            return 0.0
        since_us = self._system.property(name, path, interface, "IdleSinceHint")
        return max(0.0, self._wall() - float(since_us) / 1e6)


class MeteredSense:
    """Whether NetworkManager calls the connection metered; a `Sense`."""

    fields = frozenset({"is_metered"})

    def __init__(self, system: Bus | None = None) -> None:
        self._system = system or Bus("SYSTEM")

    def read(self) -> dict[str, object]:
        """Guesses of NetworkManager's count as well."""
        name = "org.freedesktop.NetworkManager"
        try:
            state = self._system.property(name, "/org/freedesktop/NetworkManager", name, "Metered")
        except Senseless as why:
            raise Senseless(f"nothing tells whether the connection is metered ({why})") from why
        if state not in _METERED:
            raise Senseless("NetworkManager does not know whether the connection is metered")
        return {"is_metered": _METERED[state]}
