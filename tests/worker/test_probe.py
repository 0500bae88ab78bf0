"""What a machine offers, and in what words."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from moe.config import config_from_json
from moe.layout import Layout, layout
from moe.planner import Burden, Memory
from moe.rungs import Schedule
from moe.stand_ins import DECODED, MAPPED
from protocol.errors import ConfigError
from protocol.ids import TRUNK
from protocol.recipe import Recipe
from tests.worker.conftest import small_values
from worker.machine.cgroups import GroupLimits
from worker.machine.gpus import GpuFacts, GpuFailure, Trial
from worker.machine.machine import Machine
from worker.machine.probe import columns_that_fit, load_of, measure_speed, probe_machine, schedule_that_fits
from worker.options import WorkerOptions, check_device
from worker.progress import JsonReporter, LiveReporter, PlainReporter, QuietReporter, make_reporter

MACHINE = Machine(device="cpu", device_name="test", memory_bytes=1 << 30, threads=1, bf16=False)


GIB = 1 << 30


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is free on the machine, by the system's word."""
    monkeypatch.setattr("worker.machine.probe.psutil.virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    monkeypatch.setattr("worker.machine.probe._process_bytes", lambda: GIB // 2)
    return 8 * GIB


def limited(memory_bytes: int | None = None, cpus: float | None = None) -> Callable[[], GroupLimits]:
    return lambda: GroupLimits(memory_bytes=memory_bytes, cpus=cpus)


def test_half_of_what_is_free_is_offered(free_bytes: int) -> None:
    machine = probe_machine("cpu", limits=limited())
    assert machine.memory_bytes == free_bytes // 2
    assert machine.compute_dtype is None
    assert probe_machine("cpu", threads=3, limits=limited()).threads == 3


@pytest.mark.parametrize("left", [0, 6870912, 3 * GIB, 20 * GIB])
def test_a_container_offers_its_own_share(free_bytes: int, left: int) -> None:
    assert probe_machine("cpu", limits=limited(left)).memory_bytes == min(left, free_bytes) // 2


def test_a_cap_is_for_the_whole_process(free_bytes: int) -> None:
    assert probe_machine("cpu", 6 * GIB, limits=limited()).memory_bytes == 6 * GIB - GIB // 2
    assert probe_machine("cpu", 10 << 20, limits=limited()).memory_bytes == 0


def test_a_cap_above_what_is_free_does_not_make_more_of_it(free_bytes: int) -> None:
    assert probe_machine("cpu", 64 * GIB, limits=limited()).memory_bytes == free_bytes
    assert probe_machine("cpu", 64 * GIB, limits=limited(GIB)).memory_bytes == GIB


def test_what_is_planned_under_a_cap_leaves_room_for_the_process_itself(frozen_layout: Layout) -> None:
    own_bytes = probe_machine("cpu", 1 << 40, limits=limited()).process_bytes
    cap_bytes = own_bytes + (80 << 20)
    machine = probe_machine("cpu", cap_bytes, limits=limited())
    fitting = columns_that_fit(frozen_layout, machine, 16, None)
    assert own_bytes <= machine.process_bytes
    assert fitting.needed_bytes + machine.process_bytes <= cap_bytes
    schedule = schedule_that_fits(frozen_layout, fitting.columns, machine, 4096, 16)
    needed = load_of(frozen_layout, machine, 16).needed(fitting.columns, schedule)
    assert 40 << 20 < needed.device <= cap_bytes - machine.process_bytes, "and as much is used as there is"


@pytest.mark.parametrize(("cpus", "threads"), [(None, 6), (0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (64.0, 6)])
def test_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch, cpus: float | None, threads: int) -> None:
    monkeypatch.setattr("worker.machine.probe.os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert probe_machine("cpu", limits=limited(cpus=cpus)).threads == threads


def test_a_gpu_that_works_is_offered_with_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "worker.machine.probe.torch.cuda.mem_get_info", lambda index: (10 * GIB * (index + 1), 99 * GIB)
    )
    capped: list[tuple[float, int]] = []
    monkeypatch.setattr(
        "worker.machine.probe.torch.cuda.set_per_process_memory_fraction",
        lambda share, index: capped.append((share * 99, index)),
    )
    works = Trial(name="A", capability=(8, 9), bf16=True)
    facts = GpuFacts(torch_cuda="13.0", trials=(works, dataclasses.replace(works, name="B", bf16=False)))

    def offer(device: str | None, cap: int | None = None) -> Machine:
        return probe_machine(device, cap, gpu_facts=lambda: facts, limits=limited(GIB))

    assert (offer(None).device, offer(None).device_name, offer(None).memory_bytes) == ("cuda:0", "A", 9 * GIB)
    assert (offer("cuda:1").device, offer("cuda:1").device_name, offer("cuda:1").bf16) == ("cuda:1", "B", False)
    assert not capped, "nobody said how much"
    assert offer(None, 4 * GIB).memory_bytes == 4 * GIB
    assert offer(None, 64 * GIB).memory_bytes == 10 * GIB
    assert offer("cuda:1", 128 * GIB).memory_bytes == 20 * GIB
    assert capped == [(pytest.approx(4), 0), (pytest.approx(64), 0), (99, 1)]


def test_a_gpu_that_does_not_work_is_told_and_left_alone() -> None:
    broken = Trial(name="A", capability=(6, 1), failure=GpuFailure.NO_KERNELS)
    facts = GpuFacts(torch_cuda="13.0", trials=(broken,), driver="580.1")
    machine = probe_machine(None, gpu_facts=lambda: facts)
    assert machine.device == "cpu"
    assert "the GPU is NOT used" in machine.notice
    with pytest.raises(ConfigError, match="no kernels"):
        probe_machine("cuda", gpu_facts=lambda: facts)
    assert probe_machine("cpu", gpu_facts=lambda: facts).notice == "", "a volunteer who said cpu knows"


def test_a_memory_too_small_for_one_column_is_refused_with_what_is_needed(frozen_layout: Layout) -> None:
    capped = dataclasses.replace(MACHINE, memory_bytes=0, memory_cap_bytes=10 << 20, process_bytes=300 << 20)
    with pytest.raises(ConfigError) as refused:
        columns_that_fit(frozen_layout, capped, 16, None)
    assert "--memory 10.0 MiB is too little: it must be " in str(refused.value)
    assert "(the worker itself takes 300.0 MiB of it)" in str(refused.value)
    needed_mib = int(str(refused.value).partition("it must be ")[2].partition("MB")[0])
    enough = dataclasses.replace(capped, memory_bytes=(needed_mib - 300) << 20, memory_cap_bytes=needed_mib << 20)
    assert columns_that_fit(frozen_layout, enough, 16, None).columns >= 1, "what it asks for is enough"
    with pytest.raises(ConfigError, match="--memory"):
        columns_that_fit(frozen_layout, dataclasses.replace(MACHINE, memory_bytes=0), 16, None)
    full = dataclasses.replace(capped, memory_cap_bytes=8 * GIB)
    with pytest.raises(ConfigError, match="No more memory is free"):
        columns_that_fit(frozen_layout, full, 16, None)


def test_columns_follow_the_memory(frozen_layout: Layout) -> None:
    def offer(memory: int) -> int:
        return columns_that_fit(frozen_layout, dataclasses.replace(MACHINE, memory_bytes=memory), 16, None).columns

    assert offer(1 << 30) == 4
    with pytest.raises(ConfigError, match="not even 1 of 4"):
        offer(1000)


def test_an_absent_run_needs_as_many_columns_as_a_token_is_sent_to(small_layout: Layout) -> None:
    if small_layout.residency == "frozen":
        columns_that_fit(small_layout, MACHINE, 16, 1)
    else:
        with pytest.raises(ConfigError, match="at least 2"):
            columns_that_fit(small_layout, MACHINE, 16, 1)


def test_the_micro_batch_shrinks_with_the_memory(frozen_layout: Layout) -> None:
    assert schedule_that_fits(frozen_layout, 2, MACHINE, 16, 128) == Schedule(16)
    tight = dataclasses.replace(MACHINE, memory_bytes=(32 + 6) << 20)
    assert 1 <= schedule_that_fits(frozen_layout, 2, tight, 16, 128).micro_batch < 16
    assert schedule_that_fits(frozen_layout, 2, dataclasses.replace(MACHINE, memory_bytes=1), 16, 128).micro_batch == 1


def chosen(cut: Layout, columns: int, memory_bytes: int, recipe: Recipe) -> Schedule:
    machine = dataclasses.replace(MACHINE, memory_bytes=memory_bytes)
    return schedule_that_fits(cut, columns, machine, 4, 16, recipe)


def test_frozen_experts_lie_where_there_is_room(frozen_layout: Layout) -> None:
    """Decoded where that fits; in their files where nothing else does."""
    recipe = Recipe(frozen_dtype="int4")
    assert chosen(frozen_layout, 1, 1 << 30, recipe).place == DECODED
    assert chosen(frozen_layout, 1, 1, recipe).place == MAPPED
    assert chosen(frozen_layout, 1, 1 << 30, Recipe()).place == DECODED, "what is no code is there once"


def test_where_gradients_do_not_fit_steps_go_by_layers() -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 6}
    cut = layout(config_from_json({**small_values(), **sizes}), "frozen")
    recipe, held = Recipe(optimizer="adamw"), cut.columns
    load = Burden(layout=cut, recipe=recipe, sequence_length=16, batch_sequences=4)
    usual_bytes = load.needed(held, Schedule(1, recomputed=True, given_back=True)).device
    least_bytes = load.needed(held, Schedule(1, given_back=True, by_layers=True)).device
    assert least_bytes < 0.9 * usual_bytes
    assert not chosen(cut, held, usual_bytes, recipe).by_layers
    assert chosen(cut, held, least_bytes, recipe).by_layers


def test_what_is_sent_takes_no_room_of_its_own() -> None:
    """It is written a tensor at a time, when gradients and moments are gone, whatever it is encoded in."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 6}
    cut = layout(config_from_json({**small_values(), **sizes}), "frozen")
    recipe, least = Recipe(masters="bf16", moments="compact"), Schedule(1, by_layers=True)

    def needed(codec: str, *, on_gpu: bool) -> Memory:
        load = Burden(layout=cut, recipe=recipe, sequence_length=16, codec=codec, on_gpu=on_gpu)
        return load.needed(cut.columns, least)

    assert needed("ternary", on_gpu=False) == needed("int4", on_gpu=False) == needed("fp32", on_gpu=False)
    assert needed("ternary", on_gpu=True).host < cut.block_bytes(TRUNK), "not even that of the trunk"


def test_speed_is_measured_on_the_runs_own_model(frozen_layout: Layout) -> None:
    assert measure_speed(frozen_layout, MACHINE, 2, 16) > 0


@pytest.mark.parametrize("wrong", [{"device": "tpu"}, {"max_columns": 0}, {"threads": 0}, {"output": "loud"}])
def test_wrong_options_are_refused_with_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WorkerOptions(link="", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "device", ["tpu", "cuda:x", "cuda:", "cuda:-1", "cuda:1:2", "CUDA", "cpu:3", "mps", "", "cuda:٣"]
)
def test_a_device_that_there_cannot_be_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:N"):
        check_device(device)
    with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:N"):
        probe_machine(device)


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "cuda:0", "cuda:12"])
def test_a_device_that_there_can_be_is_taken(device: str | None) -> None:
    check_device(device)


def test_the_live_bar_comes_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LiveReporter()
    reporter.step(1, 2, 2.5, 100.0)
    reporter.say("note", "[red]as it is[/red]")
    reporter.step(2, 2, None, 100.0)
    reporter.close()
    assert "[red]as it is[/red]" in capsys.readouterr().out


def test_news_as_json_lines_and_as_plain_lines() -> None:
    stream = io.StringIO()
    JsonReporter(stream).say("lease_granted", "round 3", round=3)
    JsonReporter(stream).step(1, 10, 2.5, 100.0)
    JsonReporter(stream).step(2, 10, None, 100.0)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["lease_granted", "step"]
    assert lines[0]["round"] == 3
    plain = io.StringIO()
    reporter = make_reporter("auto", plain)
    assert isinstance(reporter, PlainReporter)
    reporter.step(1, 10, 2.5, 1234.0)
    assert "step 1 of 10, loss 2.500, 1,234 tokens/s" in plain.getvalue()
    assert isinstance(make_reporter("quiet"), QuietReporter)
