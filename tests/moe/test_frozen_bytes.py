"""What frozen experts take, by dtype and place: `test_frozen.py` holds a CPU's bytes to what is there."""

from __future__ import annotations

import pytest

from moe.frozen import AT_ONCE_BYTES
from moe.frozen_bytes import frozen_bytes
from moe.layout import Layout, layout
from moe.planner import Burden, held_bytes
from moe.presets import preset
from moe.rungs import Schedule
from moe.stand_ins import DECODED, DEVICE, HOST, MAPPED, StandIns
from protocol.recipe import Recipe
from protocol.residency import ABSENT


@pytest.fixture(scope="module")
def olmoe() -> Layout:
    return layout(preset("olmoe-7b"), "frozen")


def test_four_bits_are_a_quarter_of_bf16_and_elsewhere_little_is_on_the_device(olmoe: Layout) -> None:
    def taken(dtype: str, place: str, *, on_cpu: bool = False) -> tuple[int, int]:
        found = frozen_bytes(olmoe, 4, StandIns(dtype=dtype, place=place), compute_bytes=2, on_cpu=on_cpu)
        return found.device, found.host

    values = 16 * 60 * 3 * 2048 * 1024
    assert taken("compute", DEVICE) == taken("int4", DECODED) == (2 * values, 0)
    int4, int8 = taken("int4", DEVICE)[0], taken("int8", DEVICE)[0]
    assert 8 * (int4 - AT_ONCE_BYTES) / values == pytest.approx(4.25, rel=1e-3)
    assert 8 * (int8 - AT_ONCE_BYTES) / values == pytest.approx(8.0625, rel=1e-3)
    device, host = taken("int4", HOST)
    assert host == int4 - AT_ONCE_BYTES
    assert device == 2 * host // 16 + AT_ONCE_BYTES, "two layers of sixteen"
    assert taken("int4", MAPPED) == (device, device - AT_ONCE_BYTES), "as much goes through pinned memory"
    assert taken("int4", HOST, on_cpu=True) == (int4, 0)
    assert taken("int4", MAPPED, on_cpu=True) == (AT_ONCE_BYTES, 0)


def test_the_planner_reckons_with_what_the_recipe_says(olmoe: Layout) -> None:
    coded = Recipe(frozen_dtype="int4")
    saved = held_bytes(olmoe, 4, compute_bytes=2) - held_bytes(olmoe, 4, compute_bytes=2, recipe=coded)
    assert saved == pytest.approx(16 * 60 * 3 * 2048 * 1024 * (2 - 4.25 / 8), rel=0.01)
    load = Burden(layout=olmoe, recipe=coded, sequence_length=512, compute_bytes=2, on_gpu=True)
    on_device, on_host, in_files = (load.needed(4, Schedule(1, place=place)) for place in (DEVICE, HOST, MAPPED))
    assert on_device.device > on_host.device == in_files.device
    assert on_device.host < in_files.host < on_host.host
    (line,) = (line for line in load.lines(4, Schedule(1, place=HOST)) if line.part == "frozen")
    assert "int4" in line.why


def test_where_nothing_is_frozen_nothing_is_taken(olmoe: Layout) -> None:
    everything = StandIns(dtype="int4")
    assert frozen_bytes(olmoe, 64, everything) == (0, 0, 0)
    assert frozen_bytes(layout(preset("tiny"), ABSENT), 4, everything) == (0, 0, 0)
