"""Senses with stand-ins for the system: what is asked, what is believed first, what is said where nothing answers."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from worker.senses.bus import BusIdle, MeteredSense
from worker.senses.idle import IdleSense, has_screen, is_wayland, of_macos, of_terminals, of_windows, sources_here
from worker.senses.parts import BatterySense, CpuHeatSense, GpuSense, ProgramsSense
from worker.senses.sense import Senseless, Senses
from worker.senses.x11 import X11Idle


class Told:
    """A sense that says what it is told to."""

    def __init__(self, answer: Mapping[str, object] | Exception, *fields: str) -> None:
        self.answer, self.fields, self.asked = answer, frozenset(fields), 0

    def read(self) -> Mapping[str, object]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def source(answer: float | str) -> Callable[[], float]:
    def read() -> float:
        if isinstance(answer, str):
            raise Senseless(answer)
        return answer

    return read


class FakeBus:
    """Answers by interface and name."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def ask(self, name: str, path: str, interface: str, method: str, signature: str = "", *arguments: Any) -> Any:
        del name, path, interface, signature, arguments
        return self.property("", "", "", method)

    def property(self, name: str, path: str, interface: str, key: str) -> Any:
        if key not in self.answers:
            raise Senseless("nobody answers on the bus")
        return self.answers[key]


def test_only_what_is_wanted_is_asked_and_not_too_often() -> None:
    clock = [0.0]
    idle, heat = Told({"idle_s": 3.0}, "idle_s"), Told(Senseless("no thermometer"), "cpu_celsius")
    senses = Senses([idle, heat], lambda: clock[0], every_s=1.0)
    assert senses.look(frozenset()).facts == {}
    assert senses.look(frozenset({"idle_s"})).facts == {"idle_s": 3.0}
    assert (idle.asked, heat.asked) == (1, 0)
    clock[0] = 0.5
    look = senses.look(frozenset({"idle_s", "cpu_celsius", "is_metered"}))
    assert (idle.asked, heat.asked) == (1, 1)
    assert look.lacking == {"cpu_celsius": "no thermometer", "is_metered": "nothing here tells is_metered"}
    clock[0] = 1.0
    senses.look(frozenset({"idle_s"}))
    assert idle.asked == 2


def test_a_library_that_fails_ends_nobody() -> None:
    look = Senses([Told(RuntimeError("segfault"), "idle_s")], lambda: 0.0).look(frozenset({"idle_s"}))
    assert look.lacking == {"idle_s": "idle_s cannot be found out here"}


def test_the_first_source_of_idleness_that_works_is_kept_until_it_works_no_more() -> None:
    answers: dict[str, float | str] = {"GNOME": "nobody answers", "X11": 5.0, "logind": 7.0}

    def told(name: str) -> Callable[[], float]:
        def read() -> float:
            return source(answers[name])()

        return read

    sense = IdleSense([(name, told(name)) for name in answers])
    assert sense.read() == {"idle_s": 5.0, "idle_source": "X11"}
    answers["GNOME"] = 1.0
    assert sense.read()["idle_source"] == "X11", "it goes on with the one that it has"
    answers["X11"] = "gone"
    assert sense.read() == {"idle_s": 1.0, "idle_source": "GNOME"}
    answers.update(GNOME="a", logind="b")
    with pytest.raises(Senseless, match=r"nothing tells .* \(GNOME: a; X11: gone; logind: b\)"):
        sense.read()


def test_x11_is_not_believed_on_wayland_and_terminals_only_where_there_is_no_screen(tmp_path: Path) -> None:
    assert [name for name, _ in sources_here({"DISPLAY": ":0"})] == ["GNOME", "KDE", "X11", "logind"]
    assert [name for name, _ in sources_here({"DISPLAY": ":0", "XDG_SESSION_TYPE": "wayland"})] == [
        "GNOME", "KDE", "Wayland", "logind",
    ]  # fmt: skip
    assert is_wayland({"WAYLAND_DISPLAY": "wayland-0"})
    assert not has_screen({}, tmp_path)
    (tmp_path / "tmp/.X11-unix").mkdir(parents=True)
    (tmp_path / "tmp/.X11-unix/X0").touch()
    assert has_screen({}, tmp_path)


def test_terminals_tell_when_they_were_read_last(tmp_path: Path) -> None:
    with pytest.raises(Senseless, match="no terminal"):
        of_terminals(tmp_path)
    (tmp_path / "pts").mkdir()
    for name, typed_s in (("pts/0", 100.0), ("tty1", 400.0), ("pts/ptmx", 900.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (typed_s, 1000.0))
    assert of_terminals(tmp_path, lambda: 1000.0) == 600.0


@pytest.mark.parametrize("ask", [of_windows, of_macos])
def test_other_systems_calls_say_so_here(ask: Callable[[], float]) -> None:
    with pytest.raises(Senseless, match=r"Windows|macOS"):
        ask()


def test_the_buses_idleness() -> None:
    session: Any = FakeBus(GetIdletime=2500, GetSessionIdleTime=4000)
    system: Any = FakeBus(IdleHint=True, IdleSinceHint=90_000_000)
    bus = BusIdle(session, system, lambda: 100.0)
    assert (bus.of_mutter(), bus.of_screen_saver(), bus.of_logind()) == (2.5, 4.0, 10.0)
    system.answers["IdleHint"] = False
    assert bus.of_logind() == 0.0


@pytest.mark.parametrize(("state", "metered"), [(1, True), (2, False), (3, True), (4, False), (0, None), (None, None)])
def test_networkmanagers_word(state: int | None, metered: bool | None) -> None:
    sense = MeteredSense(FakeBus() if state is None else FakeBus(Metered=state))  # type: ignore[arg-type]
    if metered is None:
        with pytest.raises(Senseless, match="metered"):
            sense.read()
    else:
        assert sense.read() == {"is_metered": metered}


def test_a_machine_without_a_battery_is_on_mains(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(battery: object) -> None:
        monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)

    says(None)
    assert BatterySense().read() == {"on_battery": False}
    says(SimpleNamespace(power_plugged=False, percent=41.0))
    assert BatterySense().read() == {"on_battery": True, "battery_percent": 41.0}
    says(SimpleNamespace(power_plugged=None, percent=41.0))
    with pytest.raises(Senseless):
        BatterySense().read()


def test_a_program_is_known_by_its_name_in_any_case() -> None:
    own = psutil.Process().name()
    sense = ProgramsSense(lambda: [own.upper(), f"{own}.exe", "no-such-program"])
    assert sense.read() == {"programs": frozenset({own.upper(), f"{own}.exe"})}


def test_the_processors_own_thermometer_is_believed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"acpitz": [SimpleNamespace(current=30.0)], "k10temp": [SimpleNamespace(current=t) for t in (61.0, 64.5)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)
    assert CpuHeatSense().read() == {"cpu_celsius": 64.5}
    found.clear()
    with pytest.raises(Senseless, match="temperature"):
        CpuHeatSense().read()


class Nvml:
    """A stand-in for NVIDIA's library."""

    NVML_TEMPERATURE_GPU, NVML_ERROR_NOT_FOUND, NVML_ERROR_NOT_SUPPORTED = 0, 6, 3

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            self.value = value

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, int]] | int = []
        self.computing: list[int] = []
        self.since: list[int] = []
        self.milliwatts: int | None = None

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        assert (handle, kind) == ("GPU-1", 0)
        return 71

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if self.milliwatts is None:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return self.milliwatts

    def nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[SimpleNamespace]:
        self.since.append(since)
        if isinstance(self.samples, int):
            raise self.NVMLError(self.samples)
        return [SimpleNamespace(pid=pid, smUtil=share, timeStamp=at) for pid, share, at in self.samples]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.computing]


def test_others_use_of_a_gpu_is_what_is_not_ours() -> None:
    nvml = Nvml()
    sense = GpuSense(0, "GPU-1", nvml, own=7)
    nvml.samples = [(7, 90, 5), (8, 10, 9), (8, 30, 12), (9, 5, 3)]
    assert sense.read() == {"gpu": 0, "gpu_celsius": 71.0, "gpu_others_percent": 35.0}
    nvml.samples = nvml.NVML_ERROR_NOT_FOUND
    assert sense.read()["gpu_others_percent"] == 0.0
    assert nvml.since == [0, 12]
    nvml.samples = nvml.NVML_ERROR_NOT_SUPPORTED
    nvml.computing = [7]
    assert sense.read()["gpu_others_percent"] == 0.0
    nvml.computing = [7, 8]
    assert sense.read()["gpu_others_percent"] == 100.0
    nvml.samples = 999
    with pytest.raises(Senseless, match="driver"):
        sense.read()
    nothing = {"gpu": None, "gpu_celsius": None, "gpu_watts": None, "gpu_others_percent": None}
    assert GpuSense(None).read() == nothing


def test_the_process_in_which_a_worker_trains_is_its_own() -> None:
    """Torch is in a child: without that, a worker would pause because of itself."""
    nvml, parents = Nvml(), {21: 7, 22: 21, 8: 1}
    sense = GpuSense(0, "GPU-1", nvml, own=7, parent_of=parents.get)
    nvml.samples = [(21, 95, 5), (8, 30, 6)]
    assert sense.read()["gpu_others_percent"] == 30.0
    del parents[21]  # a pause ended it, and the driver tells of its last second
    nvml.samples = [(21, 95, 7)]
    assert sense.read()["gpu_others_percent"] == 0.0
    nvml.samples = [(8, 1, 8)]
    sense.read()
    nvml.samples = [(21, 95, 9)]
    assert sense.read()["gpu_others_percent"] == 95.0, "another program has its number now"
    nvml.samples = nvml.NVML_ERROR_NOT_SUPPORTED
    nvml.computing, parents[23] = [23], 7
    assert sense.read()["gpu_others_percent"] == 0.0


def test_a_real_child_is_known_as_one() -> None:
    nvml = Nvml()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        nvml.samples = [(child.pid, 95, 5), (os.getpid(), 3, 5), (1, 20, 5)]
        assert GpuSense(0, "GPU-1", nvml).read()["gpu_others_percent"] == 20.0


def test_a_card_that_does_not_count_its_power_is_missed_by_that_rule_alone() -> None:
    nvml = Nvml()
    senses = Senses([GpuSense(0, "GPU-1", nvml, own=7)], lambda: 0.0, every_s=0.0)
    look = senses.look(frozenset({"gpu_celsius", "gpu_watts"}))
    assert look.facts["gpu_celsius"] == 71.0
    assert look.lacking == {"gpu_watts": "the GPU does not tell how much power it takes"}
    nvml.milliwatts = 182_400
    assert senses.look(frozenset({"gpu_watts"})).facts["gpu_watts"] == 182.4


def x_server(path: Path, answers: list[bytes]) -> threading.Thread:
    """One connection; after each request the next of `answers`."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1)

    def work() -> None:
        link, _ = listening.accept()
        with link, listening:
            for answer in answers:
                if not link.recv(4096):
                    return
                link.sendall(answer)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


SCREEN = b"abc\0" + bytes(8) + struct.pack("<I", 77)
WELCOME_REST = bytes(16) + struct.pack("<H", 3) + bytes(3) + b"\x01" + bytes(10) + SCREEN
WELCOME = struct.pack("<BBHHH", 1, 0, 11, 0, len(WELCOME_REST) // 4) + WELCOME_REST
EXTENSION = bytes([1]) + bytes(7) + bytes([1, 142]) + bytes(22)
EVENT = bytes([12]) + bytes(31)
IDLE = bytes([1]) + bytes(15) + struct.pack("<I", 61_500) + bytes(12)


def test_an_x_server_is_asked_by_its_own_protocol(tmp_path: Path) -> None:
    x_server(tmp_path / "X5", [WELCOME, EXTENSION, EVENT + IDLE])
    x11 = X11Idle({"DISPLAY": ":5.0"}, tmp_path)
    assert x11.idle_s() == 61.5
    assert x11._root == 77
    with pytest.raises(Senseless, match="does not answer"):
        x11.idle_s()


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([struct.pack("<BBHHH", 0, 0, 11, 0, 0)], "let this worker in"),
        ([WELCOME, bytes([1]) + bytes(31)], "does not tell"),
        ([WELCOME, EXTENSION, bytes(32)], "refuses"),
        ([struct.pack("<BBHHH", 1, 0, 11, 0, 2) + bytes(8)], "does not answer"),
        ([WELCOME, EXTENSION, bytes([1]) + bytes(3) + struct.pack("<I", 2**30) + bytes(24)], "more than can be"),
    ],
)
def test_an_x_server_that_tells_nothing(tmp_path: Path, answers: list[bytes], told: str) -> None:
    x_server(tmp_path / "X5", answers)
    with pytest.raises(Senseless, match=told):
        X11Idle({"DISPLAY": ":5"}, tmp_path).idle_s()


@pytest.mark.parametrize("display", ["", "elsewhere:0", "../X:0", ":x"])
def test_without_a_display_of_this_machine_nobody_is_asked(tmp_path: Path, display: str) -> None:
    with pytest.raises(Senseless, match="no X display"):
        X11Idle({"DISPLAY": display}, tmp_path).idle_s()


def test_the_cookie_of_the_display_is_sent(tmp_path: Path) -> None:
    def field(text: bytes) -> bytes:
        return struct.pack(">H", len(text)) + text

    entries = [(b"host", b"4", b"MIT-MAGIC-COOKIE-1", b"wrong"), (b"host", b"5", b"MIT-MAGIC-COOKIE-1", b"right")]
    authority = b"".join(b"\x01\x00" + b"".join(map(field, entry)) for entry in entries)
    (tmp_path / "authority").write_bytes(authority + b"\x01\x00\x00")
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack("<BBHHH", 0, 0, 11, 0, 0))
    with ours, theirs:
        with pytest.raises(Senseless):
            X11Idle({"XAUTHORITY": str(tmp_path / "authority")}, tmp_path)._greet(ours, "5")
        assert b"MIT-MAGIC-COOKIE-1\0\0right" in theirs.recv(4096)
