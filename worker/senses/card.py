"""One NVIDIA GPU, as NVIDIA's management library tells of it: temperature, energy, power, who else computes there.

Decides nothing. Holds always: whatever the library refuses is `Senseless`, in words for the volunteer, and the card is
looked up again the next time, since a driver may come back. Loads the library only when it is asked something. What is
said of a GPU was tried with a stand-in for that library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from worker.senses.sense import Senseless

Told = TypeVar("Told")


class NvidiaCard:
    """The card that a worker trains on."""

    def __init__(self, number: int, uuid: str = "", nvml: Any = None) -> None:
        """`number`, as torch counts, and its UUID, which is believed rather. `nvml`: the library."""
        self._number, self._uuid, self._nvml = number, uuid, nvml
        self._handle: Any = None

    def ask(self, question: Callable[[Any, Any], Told]) -> Told:
        """What `question` makes of the library and the card; Senseless where the driver does not tell."""
        nvml = self._library()
        try:
            if self._handle is None:
                nvml.nvmlInit()
                find = nvml.nvmlDeviceGetHandleByUUID if self._uuid else nvml.nvmlDeviceGetHandleByIndex
                self._handle = find(self._uuid or self._number)
            return question(nvml, self._handle)
        except nvml.NVMLError as error:
            self._handle = None
            raise Senseless("NVIDIA's driver does not tell how the GPU is") from error

    def celsius(self) -> float:
        """How hot it is."""
        return self.ask(lambda nvml, card: float(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)))

    def joules(self) -> float:
        """What it has taken since its driver was loaded; cards from 2017 on count it themselves."""
        return self.ask(lambda nvml, card: float(nvml.nvmlDeviceGetTotalEnergyConsumption(card)) / 1e3)

    def watts(self) -> float:
        """What it takes at the moment."""
        return self.ask(lambda nvml, card: float(nvml.nvmlDeviceGetPowerUsage(card)) / 1e3)

    def limit_watts(self) -> float:
        """What its maker, or its owner, lets it take at the most."""
        return self.ask(lambda nvml, card: float(nvml.nvmlDeviceGetEnforcedPowerLimit(card)) / 1e3)

    def _library(self) -> Any:
        if self._nvml is None:
            try:
                import pynvml
            except ImportError:
                raise Senseless("nvidia-ml-py is not installed, which asks NVIDIA's driver") from None
            self._nvml = pynvml
        return self._nvml
