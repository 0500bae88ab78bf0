"""Senses with the real thing beside them: an X server, and a D-Bus daemon with services that answer as real ones do.

Run by `make senses`, which fails where a tool is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection

from worker.policy import Circumstances
from worker.rules.model import VolunteerRules
from worker.rules.policy import RuledPolicy
from worker.senses.bus import BusIdle, MeteredSense
from worker.senses.idle import IdleSense
from worker.senses.sense import Senseless
from worker.senses.x11 import X11Idle

pytestmark = pytest.mark.senses


def until(wanted: Any, seconds: float = 10.0) -> Any:
    """The first true value of `wanted`."""
    ends_s = time.monotonic() + seconds
    while not (value := wanted()):
        assert time.monotonic() < ends_s
        time.sleep(0.05)
    return value


@pytest.fixture
def display() -> Iterator[str]:
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "320x200x8", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as told:
        yield f":{told.readline().strip()}"
    server.terminate()
    server.wait()


def test_x11_tells_when_the_mouse_was_moved_and_outlives_its_server(display: str) -> None:
    x11 = X11Idle({"DISPLAY": display, "HOME": "/nonexistent"})
    until(lambda: x11.idle_s() > 1.0)
    before_s = x11.idle_s()
    subprocess.run(["xdotool", "mousemove", "20", "20"], env={**os.environ, "DISPLAY": display}, check=True)
    assert x11.idle_s() < before_s
    policy = RuledPolicy(VolunteerRules.checked({"when": {"idle_minutes": 0.02}}, ""))
    sense = IdleSense([("X11", x11.idle_s)])

    def allowed() -> bool:
        return policy.may_work(Circumstances(wall_s=time.time(), **sense.read())).allowed  # type: ignore[arg-type]

    assert not allowed()
    until(allowed)
    x11.close()


class Service:
    """Owns names on a bus, and answers methods by their names."""

    def __init__(self, *names: str, **answers: tuple[str, Any]) -> None:
        self.answers = answers
        self._link = open_dbus_connection(bus="SESSION")
        bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
        for name in names:
            self._link.send_and_get_reply(new_method_call(bus, "RequestName", "su", (name, 0)))
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # until the bus is ended
            self._serve()
        self._link.close()

    def _serve(self) -> None:
        while True:
            message = self._link.receive()
            if message.header.message_type is not MessageType.method_call:
                continue
            asked = message.header.fields[HeaderFields.member]
            asked = message.body[1] if asked == "Get" else asked
            if asked in self.answers:
                signature, value = self.answers[asked]
                self._link.send(new_method_return(message, signature, (value,)))
            else:
                self._link.send(new_error(message, "org.freedesktop.DBus.Error.UnknownMethod"))


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    address = f"unix:path={tmp_path / 'bus'}"
    daemon = subprocess.Popen(["dbus-daemon", "--session", "--nofork", f"--address={address}"])
    until((tmp_path / "bus").exists)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    yield
    daemon.terminate()
    daemon.wait()


@pytest.mark.usefixtures("bus")
def test_the_desktops_and_the_networks_word_come_over_a_real_bus() -> None:
    idle, metered = BusIdle(wall=lambda: 1000.0), MeteredSense()
    for ask in (idle.of_mutter, idle.of_screen_saver, idle.of_logind, metered.read):
        with pytest.raises(Senseless, match="not on the"):
            ask()
    service = Service(
        "org.gnome.Mutter.IdleMonitor",
        "org.freedesktop.ScreenSaver",
        "org.freedesktop.login1",
        "org.freedesktop.NetworkManager",
        GetIdletime=("t", 61_500),
        IdleHint=("v", ("b", True)),
        IdleSinceHint=("v", ("t", 900_000_000)),
        Metered=("v", ("u", 3)),
    )
    assert (idle.of_mutter(), idle.of_logind()) == (61.5, 100.0)
    assert metered.read() == {"is_metered": True}
    with pytest.raises(Senseless):
        idle.of_screen_saver()  # GNOME has the name, and no such method
    service.answers["GetSessionIdleTime"] = "u", 2000
    assert idle.of_screen_saver() == 2.0
    for link in (idle._session, idle._system, metered._system):
        link.close()


def test_without_a_bus_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    with pytest.raises(Senseless, match="nobody answers on the session bus"):
        BusIdle().of_mutter()
