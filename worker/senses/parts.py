"""Battery, programs, processor and GPU, by psutil and NVIDIA's management library.

Decides what counts: a machine without a battery is on mains; a program is known by its name, with or without `.exe`, in
any case. Reads the system's figures; loads NVIDIA's library only where a rule asks for it. What is said of a GPU was
tried with a stand-in for that library alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

import psutil

from worker.senses.card import NvidiaCard
from worker.senses.sense import Senseless

KERNEL_CHARACTERS: Final = 15
"""Of a program's name that Linux keeps."""
_PROCESSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Drivers of the kernel that tell a processor's temperature, the best first."""


class BatterySense:
    """What the machine runs on; a `Sense`."""

    fields = frozenset({"on_battery", "battery_percent"})

    def read(self) -> dict[str, object]:
        """Without a battery: on mains."""
        ask = getattr(psutil, "sensors_battery", None)
        battery = ask() if ask is not None else None
        if battery is None:
            return {"on_battery": False}
        if battery.power_plugged is None:
            raise Senseless("the system does not say whether it runs on its battery")
        return {"on_battery": not battery.power_plugged, "battery_percent": float(battery.percent)}


class ProgramsSense:
    """Which of the named programs run; a `Sense`."""

    fields = frozenset({"programs"})

    def __init__(self, named: Callable[[], Iterable[str]]) -> None:
        """`named`: the names that the rules have at the moment."""
        self._named = named

    def read(self) -> dict[str, object]:
        """Of all users' processes whose names may be read."""
        named = tuple(self._named())
        running = {_plain(process.info["name"] or "") for process in psutil.process_iter(["name"])}
        found = (name for name in named if running & {_plain(name), _plain(name)[:KERNEL_CHARACTERS]})
        return {"programs": frozenset(found)}


class CpuHeatSense:
    """The processor's temperature; a `Sense`."""

    fields = frozenset({"cpu_celsius"})

    def read(self) -> dict[str, object]:
        """The hottest core's, of the first driver that tells."""
        ask = getattr(psutil, "sensors_temperatures", None)
        found = ask() if ask is not None else {}
        for driver in _PROCESSORS:
            if readings := [reading.current for reading in found.get(driver, ()) if reading.current]:
                return {"cpu_celsius": float(max(readings))}
        raise Senseless("nothing tells the processor's temperature")


class GpuSense:
    """One NVIDIA GPU's temperature, and how much others use it; a `Sense`."""

    fields = frozenset({"gpu", "gpu_celsius", "gpu_watts", "gpu_others_percent"})

    def __init__(
        self,
        number: int | None,
        uuid: str = "",
        nvml: Any = None,
        own: int | None = None,
        parent_of: Callable[[int], int | None] | None = None,
    ) -> None:
        """`number`, as torch counts, and its UUID; None: the worker uses no GPU. `nvml`: NVIDIA's library. `parent_of`:
        the process that started one; None: it is gone, or nobody knows."""
        self._number, self._card = number, None if number is None else NvidiaCard(number, uuid, nvml)
        self._own, self._parent_of, self._since_us = own or os.getpid(), parent_of or _parent_of, 0
        self._ours: frozenset[int] = frozenset()
        """Whom the worker had started, of those that were seen at the last look: one that has ended since was ours."""

    def read(self) -> dict[str, object]:
        """Nothing but that there is none, where the worker uses none."""
        if self._card is None:
            return {"gpu": None, "gpu_celsius": None, "gpu_watts": None, "gpu_others_percent": None}
        found: dict[str, object] = {"gpu": self._number, "gpu_others_percent": self._card.ask(self._others)}
        with contextlib.suppress(Senseless):  # some cards count none: only a rule about power misses it
            found["gpu_watts"] = self._card.watts()
        return {**found, "gpu_celsius": self._card.celsius()}

    def _others(self, nvml: Any, card: Any) -> float | None:
        """Share of the multiprocessors' time since the last look; no sample: nobody else used it."""
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(card, self._since_us)
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NOT_FOUND:
                return 0.0
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                return self._others_by_name(nvml, card)
            raise
        self._since_us = max((sample.timeStamp for sample in samples), default=self._since_us)
        latest = {sample.pid: sample.smUtil for sample in sorted(samples, key=lambda each: each.timeStamp)}
        others = self._not_ours(latest)
        return float(sum(share for pid, share in latest.items() if pid in others))

    def _others_by_name(self, nvml: Any, card: Any) -> float:
        """Where the driver tells no shares (Windows, some cards), another program that computes there counts whole."""
        computing = nvml.nvmlDeviceGetComputeRunningProcesses(card)
        return 100.0 if self._not_ours(process.pid for process in computing) else 0.0

    def _not_ours(self, pids: Iterable[int]) -> frozenset[int]:
        """Without the worker itself and the process in which it trains, which is its child."""
        seen = frozenset(pids)
        ours = frozenset(pid for pid in seen if self._is_ours(pid)) | (seen & self._ours)
        self._ours = ours
        return seen - ours

    def _is_ours(self, pid: int) -> bool:
        return self._own in (pid, self._parent_of(pid))


def _parent_of(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return None


def _plain(name: str) -> str:
    return name.lower().removesuffix(".exe")
