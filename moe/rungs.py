"""The rungs of the memory ladder: each by name, who chooses it, which bytes it changes, what it costs.

Decides which ways of training there are, and in which order they are tried: quickest first. What a rung *saves* is not
here: `moe.weighing` and `moe.planner` count what training with it takes. A rung that changes what is computed is the
run's, a field of its recipe; one that does not is the machine's, a field of `Schedule` (docs/decisions/0047, 0053).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from moe.layout import Layout
from moe.stand_ins import DECODED, DEVICE, HOST, MAPPED
from moe.weighing import can_go_by_layers, can_recompute
from protocol.recipe import FROZEN_DTYPES, MASTERS, MOMENTS, TRUNKS, Recipe
from protocol.residency import FROZEN

HALVED: Final = 1.05
"""A step's time with half the micro-batch, as a share of what it was: only that less time may be lost is meant."""


class Schedule(NamedTuple):
    """What a machine chooses by itself for a lease; none of it changes what is computed, beyond rounding."""

    micro_batch: int
    """Sequences that go through the model at once."""
    recomputed: bool = False
    """Whether activations are computed again in the backward pass."""
    given_back: bool = False
    """Whether small pieces of memory go back to the system as soon as they are dropped."""
    place: str = DECODED
    """Where experts that are not held lie: a name of `moe.stand_ins`."""
    by_layers: bool = False
    """Whether steps go layer by layer, so that never more gradients than a layer's are there; activations are computed
    again then, too."""
    inputs_on_host: bool = False
    """By layers: whether what each layer was given is kept in the host's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to take less memory."""

    name: str
    """A field of `Recipe` or of `Schedule`."""
    who: Literal["run", "machine"]
    part: str
    """Which line of a plan it makes smaller."""
    options: Mapping[Any, str]
    """Its values, quickest or most exact first, and what a person is told of each."""
    costs: str
    times: Mapping[Any, float] = field(default_factory=dict)
    """How many times as long a step takes with a value; 1 where it is not named."""
    is_for: Callable[[Layout, bool], bool] = lambda _layout, _on_gpu: True
    """Whether there is a choice for a model of this layout, on a GPU or not; else the first value is the only one."""


RUNGS: Final[tuple[Rung, ...]] = (
    Rung(
        name="masters",
        who="run",
        part="weights",
        options=dict(zip(MASTERS, ("weights in fp32", "weights in bf16, rounded at random"), strict=True)),
        costs="exactness: see docs/decisions/0047",
    ),
    Rung(
        name="moments",
        who="run",
        part="moments",
        options=dict(zip(MOMENTS, ("moments in fp32", "Muon's moment in bf16, AdamW's in 8 bits"), strict=True)),
        costs="exactness: see docs/decisions/0047",
    ),
    Rung(
        name="frozen_dtype",
        who="run",
        part="frozen",
        options=dict(
            zip(FROZEN_DTYPES, (f"other columns in {words}" for words in ("full", "8 bits", "4 bits")), strict=True)
        ),
        costs="exactness: see docs/decisions/0051",
        is_for=lambda layout, _: layout.residency == FROZEN,
    ),
    Rung(
        name="trunk",
        who="run",
        part="gradients",
        options=dict(zip(TRUNKS, ("a trained trunk", "a trunk at low rank", "a frozen trunk"), strict=True)),
        costs="what the trunk would learn: see docs/decisions/0055",
    ),
    Rung(
        name="recomputed",
        who="machine",
        part="passing",
        options={False: "activations kept for the backward pass", True: "activations computed again"},
        costs="a third more time",
        times={True: 4 / 3},
        is_for=lambda layout, _: can_recompute(layout),
    ),
    Rung(
        name="given_back",
        who="machine",
        part="reserve",
        options={False: "dropped memory used again", True: "dropped memory given back at once"},
        costs="up to two fifths more time, where page faults are dear",
        times={True: 1.3},
        is_for=lambda _, on_gpu: not on_gpu,
    ),
    Rung(
        name="place",
        who="machine",
        part="frozen",
        options={
            DECODED: "other columns beside those that are held",
            DEVICE: "other columns in their codes",
            HOST: "other columns in main memory",
            MAPPED: "other columns in their files",
        },
        costs="a fifth to a half more time",
        times={DEVICE: 1.25, HOST: 1.35, MAPPED: 1.5},
        is_for=lambda layout, _: layout.residency == FROZEN,
    ),
    Rung(
        name="by_layers",
        who="machine",
        part="gradients",
        options={False: "a full set of gradients", True: "gradients used up layer by layer"},
        costs="two thirds more time; a third, where each layer is clipped by itself",
        times={True: 5 / 3},
        is_for=lambda layout, _: can_go_by_layers(layout),
    ),
    Rung(
        name="inputs_on_host",
        who="machine",
        part="passing",
        options={False: "layers' inputs on the device", True: "layers' inputs in main memory"},
        costs="copies of a layer's input, up and down",
        times={True: 1.1},
        is_for=lambda layout, on_gpu: on_gpu and can_go_by_layers(layout),
    ),
)


def of_machine(layout: Layout, *, on_gpu: bool = False) -> Iterator[tuple[dict[str, Any], float]]:
    """Every way in which a machine may train such a model, and how many times as long a step takes; micro-batch apart.

    Quickest first.
    """
    rungs = [rung for rung in RUNGS if rung.who == "machine" and rung.is_for(layout, on_gpu)]
    found = []
    for values in itertools.product(*(rung.options for rung in rungs)):
        named = dict(zip((rung.name for rung in rungs), values, strict=True))
        if named.get("by_layers") and named.get("recomputed"):
            continue  # it is computed again anyway
        if named.get("inputs_on_host") and not named["by_layers"]:
            continue
        times = math.prod(rung.times.get(value, 1.0) for rung, value in zip(rungs, values, strict=True))
        found.append((named, times))
    yield from sorted(found, key=lambda one: one[1])


def schedules(layout: Layout, batch: int, *, on_gpu: bool = False) -> Iterator[Schedule]:
    """Every way to train `batch` sequences a step, whole or halved again and again; quickest first."""
    found = []
    for ways, times in of_machine(layout, on_gpu=on_gpu):
        micro_batch, taken = batch, times
        found.append((taken, Schedule(micro_batch, **ways)))
        while micro_batch > 1:
            micro_batch, taken = (micro_batch + 1) // 2, taken * HALVED
            found.append((taken, Schedule(micro_batch, **ways)))
    yield from (schedule for _, schedule in sorted(found, key=lambda one: one[0]))


def chosen(recipe: Recipe, schedule: Schedule, layout: Layout, *, on_gpu: bool) -> Iterator[tuple[Rung, Any]]:
    """Each rung that such a model has on such a machine, with the value that a plan has of it."""
    for rung in RUNGS:
        if rung.is_for(layout, on_gpu):
            yield rung, getattr(recipe if rung.who == "run" else schedule, rung.name)


def told(schedule: Schedule) -> Iterator[str]:
    """What of a schedule is other than usual, in words."""
    for rung in RUNGS:
        if rung.who == "machine" and (value := getattr(schedule, rung.name)) != next(iter(rung.options)):
            yield rung.options[value]


def lower_recipes(recipe: Recipe) -> Iterator[tuple[tuple[Rung, ...], Recipe]]:
    """What a run might allow besides: each of its rungs that is not used up yet to its last value, then all of them."""
    left = tuple(rung for rung in RUNGS if rung.who == "run" and getattr(recipe, rung.name) != _last(rung))
    for rungs in (*((rung,) for rung in left), *((left,) if len(left) > 1 else ())):
        yield rungs, replace(recipe, **{rung.name: _last(rung) for rung in rungs})


def _last(rung: Rung) -> Any:
    return list(rung.options)[-1]
