"""What training takes: counted where something counts, else estimated and marked so; only while a lease is trained."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from tests.worker.senses.test_senses import Nvml
from worker.background import Threads
from worker.energy import (
    ENERGY_FILE,
    GPU_WATTS,
    KEPT_LEASES,
    CardCounter,
    EnergyMeter,
    EnergyNotes,
    ProcessorCounter,
    energy_words,
)
from worker.energy_watch import EnergyWatch
from worker.senses.card import NvidiaCard
from worker.senses.sense import Senseless
from worker.states import State


class Notebook(dict[str, bytes]):
    def keep(self, name: str, content: bytes) -> None:
        self[name] = content

    def kept(self, name: str) -> bytes | None:
        return self.get(name)


class Part:
    """A part of the machine that counts, or does not."""

    part = "GPU 0"

    def __init__(self) -> None:
        self.count_j: float | None = 1000.0

    def joules(self) -> float:
        if self.count_j is None:
            raise Senseless("it does not count")
        return self.count_j

    def assumed_watts(self) -> float:
        return 50.0

    def celsius(self) -> float:
        return 61.0


class Bench:
    def __init__(self) -> None:
        self.part, self.notebook, self.now_s = Part(), Notebook(), 100.0
        self.meter = self.again()

    def again(self) -> EnergyMeter:
        self.meter = EnergyMeter(self.part, self.notebook, lambda: self.now_s)
        return self.meter

    def look(self, lease: str | None, passed_s: float, joules: float | None = None) -> None:
        self.now_s += passed_s
        if self.part.count_j is not None and joules is not None:
            self.part.count_j += joules
        self.meter.look(lease)

    @property
    def total(self) -> tuple[float, float]:
        return self.meter.notes.total.measured_j, self.meter.notes.total.estimated_j


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.look(None, 0.0)
    return made


def test_what_is_counted_while_a_lease_is_in_training_is_its(bench: Bench) -> None:
    bench.look("r1.1", 2.0, 200.0)
    assert (bench.meter.gauge.watts, bench.meter.gauge.how, bench.meter.gauge.celsius) == (100.0, "measured", 61.0)
    bench.look(None, 2.0, 500.0)
    bench.look("r2.1", 2.0, 300.0)
    assert bench.total == (500.0, 0.0)
    assert {lease: use.measured_j for lease, use in bench.meter.notes.leases.items()} == {"r1.1": 200.0, "r2.1": 300.0}


def test_where_nothing_counts_it_is_estimated_and_never_added_to_what_is_measured(bench: Bench) -> None:
    bench.look("r1.1", 2.0, 200.0)
    bench.part.count_j = None
    bench.look("r1.1", 2.0)
    assert bench.total == (200.0, 100.0)
    assert bench.meter.gauge.watts is None
    assert energy_words(**bench.meter.notes.total.kwh) == "0.1 Wh measured and 0.0 Wh estimated"
    assert energy_words(0.42, 0.0) == "0.42 kWh measured"


@pytest.mark.parametrize(("passed_s", "joules"), [(3600.0, 1e5), (2.0, -500.0), (2.0, 1e9)])
def test_a_sleep_or_a_counter_that_was_set_back_is_not_counted(bench: Bench, passed_s: float, joules: float) -> None:
    bench.look("r1.1", passed_s, joules)
    assert bench.total[0] == 0.0
    assert bench.total[1] <= 100.0, "two seconds at the assumed watts, and nothing for a night asleep"


def test_it_outlives_the_process_and_forgets_old_leases_but_not_their_sum(bench: Bench) -> None:
    for number in range(KEPT_LEASES + 5):
        bench.look(f"r{number}.1", 1.0, 10.0)
    bench.meter.close()
    bench.again()
    assert bench.total == (10.0 * (KEPT_LEASES + 5), 0.0)
    assert len(bench.meter.notes.leases) == KEPT_LEASES
    bench.notebook[ENERGY_FILE] = b'{"total": {"measured_j": -1}}'
    assert bench.again().notes == EnergyNotes()


def test_a_driver_that_hangs_keeps_nobody_from_leaving_and_writes_nothing_after_that(bench: Bench) -> None:
    bench.look("r1.1", 2.0, 200.0)
    asked, answers, gave_up = Event(), Event(), list[bool]()

    def hang() -> float:
        asked.set()
        gave_up.append(not answers.wait(5.0))
        return 1e6

    bench.part.joules = hang  # type: ignore[method-assign]
    threads = Threads()
    agent: Any = SimpleNamespace(held_lease="r1.1", state=State.TRAINING)

    async def live() -> None:
        watching = asyncio.create_task(EnergyWatch(bench.meter, agent, threads).run())
        while not asked.is_set():
            await asyncio.sleep(0)
        watching.cancel()
        bench.meter.close()

    bench.now_s += 10.0
    asyncio.run(live())
    assert (gave_up, threads.busy) == ([], True), "nobody waited for it"
    written = dict(bench.notebook)
    assert EnergyNotes.model_validate_json(written[ENERGY_FILE]).total.measured_j == 200.0
    bench.now_s += 1.0
    answers.set()
    for thread in threads._threads:
        thread.join(5.0)
    assert (gave_up, bench.notebook, bench.total) == ([False], written, (200.0, 0.0))


def test_a_processors_packages_are_added_up_over_the_end_of_their_counters(tmp_path: Path) -> None:
    for number, value in enumerate((5_000_000, 9_000_000)):
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        (folder / "energy_uj").write_text(str(value))
        (folder / "max_energy_range_uj").write_text("10000000")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the first package
    counter = ProcessorCounter(lambda: 35.0, tmp_path)
    assert counter.joules() == 0.0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("6000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000")
    assert counter.joules() == pytest.approx(3.0)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    with pytest.raises(Senseless):
        counter.joules()
    assert counter.assumed_watts() == 35.0
    with pytest.raises(Senseless):
        ProcessorCounter(root=tmp_path / "nowhere").joules()


def test_a_card_that_counts_nothing_is_taken_at_what_it_draws_or_may_draw() -> None:
    nvml: Any = Nvml()
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda _card: 42_000
    nvml.nvmlDeviceGetPowerUsage = lambda _card: 182_400
    nvml.nvmlDeviceGetEnforcedPowerLimit = lambda _card: 300_000
    ruled = SimpleNamespace(watts=0.0)
    counter = CardCounter(NvidiaCard(0, "GPU-1", nvml), 0, lambda: ruled.watts)
    assert (counter.joules(), counter.assumed_watts()) == (42.0, 182.4)

    def refuse(_card: object) -> int:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    nvml.nvmlDeviceGetTotalEnergyConsumption = nvml.nvmlDeviceGetPowerUsage = refuse
    with pytest.raises(Senseless):
        counter.joules()
    assert counter.assumed_watts() == 300.0
    nvml.nvmlDeviceGetEnforcedPowerLimit = refuse
    assert counter.assumed_watts() == GPU_WATTS
    ruled.watts = 120.0
    assert counter.assumed_watts() == 120.0
