"""Which ways of training there are, in which order they are tried, and whose choice they are."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from moe import rungs
from moe.burden import Burden, _tensors
from moe.layout import layout
from moe.planner import ANY_HOST, Memory, planned, schedule_for
from moe.presets import preset
from moe.rungs import RUNGS, Rung, Schedule, lower_recipes, of_machine, schedules
from moe.stand_ins import DECODED, DEVICE
from protocol.recipe import Recipe
from protocol.residency import FROZEN

CUT = layout(preset("tiny"), FROZEN)
LOAD = Burden(layout=CUT, recipe=Recipe(), sequence_length=128)
LARGE = Memory(1 << 40, ANY_HOST)


def test_every_rung_is_a_field_of_whoever_chooses_it_and_begins_with_what_is_usual() -> None:
    for rung in RUNGS:
        usual = Recipe() if rung.who == "run" else Schedule(1)
        assert getattr(usual, rung.name) == next(iter(rung.options)), rung.name
        assert rung.part in {line.part for line in LOAD.lines(1, Schedule(1))}
        assert rung.times.keys() <= rung.options.keys()
    assert {rung.name for rung in RUNGS if rung.who == "machine"} == set(Schedule._fields) - {"micro_batch"}


def test_every_rung_takes_less_of_the_part_that_it_names() -> None:
    """On a machine whose other parts do not hide it."""
    for rung in RUNGS:
        first, *_, last = rung.options
        loads = [
            dataclasses.replace(LOAD, recipe=dataclasses.replace(Recipe(), **{rung.name: value}))
            if rung.who == "run"
            else LOAD
            for value in (first, last)
        ]
        # codes take less where they are kept as such, and inputs are kept where steps go by layers
        usual = Schedule(64, place=DEVICE if rung.name == "frozen_dtype" else DECODED)
        usual = usual._replace(by_layers=rung.name == "inputs_on_host")
        own = {rung.name} if rung.who == "machine" else set()
        ways = [usual._replace(**dict.fromkeys(own, value)) for value in (first, last)]
        sums = [
            sum(line.memory_bytes for line in load.lines(4, way) if line.part == rung.part and line.where == "device")
            for load, way in zip(loads, ways, strict=True)
        ]
        assert sums[1] < sums[0], rung.name


def test_the_quickest_is_tried_first() -> None:
    ways = list(of_machine(CUT))
    assert ways[0] == ({name: getattr(Schedule(1), name) for name in ways[0][0]}, 1.0)
    assert all(one[1] <= other[1] for one, other in pairwise(ways))
    tried = list(schedules(CUT, 16))
    assert tried[0] == Schedule(16)
    assert len(tried) == len(set(tried)) == 5 * len(ways)
    assert tried.index(Schedule(1)) < tried.index(Schedule(16, recomputed=True)), "halving costs less than a third"


def test_a_lease_is_trained_in_the_quickest_way_that_fits() -> None:
    def way(memory_bytes: int) -> Schedule:
        return schedule_for(LOAD, 2, Memory(memory_bytes, ANY_HOST), 16)

    assert way(LARGE.device) == Schedule(16)
    order = list(schedules(CUT, 16))
    for one in order:
        found = way(LOAD.needed(2, one).device)
        assert LOAD.needed(2, found).device <= LOAD.needed(2, one).device
        assert order.index(found) <= order.index(one)
    smallest = min(order, key=lambda one: LOAD.needed(2, one).device)
    assert way(1) == smallest, "where nothing fits, what comes nearest"


def test_a_rung_of_the_machines_is_found_by_the_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned for is what a lease gets: the same entry serves both."""
    least = LOAD.needed(8, Schedule(4, recomputed=True, given_back=True))
    found = planned(LOAD, least)
    assert (found.columns, found.schedule) == (8, Schedule(4, recomputed=True)), "what saves nothing is left out"
    assert schedule_for(LOAD, 8, least, 4).micro_batch <= 4
    monkeypatch.setattr(rungs, "RUNGS", tuple(rung for rung in RUNGS if rung.name != "recomputed"))
    assert not planned(LOAD, least).schedule.recomputed


def test_memory_beside_a_gpu_counts() -> None:
    load = dataclasses.replace(LOAD, compute_bytes=2, on_gpu=True)
    free = planned(load, LARGE)
    assert free.columns == 8
    assert free.needed.host > 0
    tight = planned(load, Memory(LARGE.device, free.needed.host - 1))
    assert tight.columns < 8
    assert "of the host's" in tight.reason
    assert planned(LOAD, Memory(LARGE.device, 0)).columns == 8, "on a CPU there is none beside it"


def test_what_would_make_it_fit_is_said() -> None:
    needed = planned(LOAD, Memory(1, ANY_HOST)).needed.device
    rung: Rung = RUNGS[0]
    lower = next(recipe for used, recipe in lower_recipes(Recipe()) if used == (rung,))
    enough = planned(dataclasses.replace(LOAD, recipe=lower), Memory(1, ANY_HOST)).needed.device
    assert enough < needed
    assert "With weights in bf16" in planned(LOAD, Memory(enough, ANY_HOST)).reason
    assert "It would take" in planned(LOAD, Memory(1, ANY_HOST)).reason


def test_a_codec_with_a_state_takes_no_more_than_a_tensor_of_it_when_work_is_sent() -> None:
    load = dataclasses.replace(LOAD, compute_bytes=2, on_gpu=True)
    plain = load.needed(8, Schedule(1)).host
    largest = max(one.elements for one in _tensors(load.layout, 8, load.recipe))
    assert plain <= dataclasses.replace(load, codec="ternary").needed(8, Schedule(1)).host <= plain + 20 * largest
