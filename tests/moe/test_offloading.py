"""The schedule of layers that are brought to a device, without a device: what it promises holds for every order."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.offloading import DropLayer, FetchLayer, OffloadSchedule, UseLayer


class Device:
    """What a machine would hold that does as it is told; it stumbles over an act that makes no sense."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.lying: dict[int, int] = {}
        self.fetched: list[int] = []
        self.waited: list[int] = []

    def carry_out(self, schedule: OffloadSchedule, layer: int) -> None:
        used = False
        for act in schedule.use(layer):
            match act:
                case FetchLayer(one, slot):
                    assert one not in self.lying
                    assert slot not in self.lying.values(), "the slot is in use"
                    assert 0 <= slot < self.window
                    self.lying[one] = slot
                    self.fetched.append(one)
                    if not used:
                        self.waited.append(one)
                case UseLayer(one, slot):
                    assert (one, self.lying.get(one)) == (layer, slot), "used before it was fetched"
                    used = True
                case DropLayer(one, slot):
                    assert one != layer or not used
                    assert self.lying.pop(one) == slot
            assert len(self.lying) <= self.window
        assert used
        assert schedule.resident == set(self.lying)


def run(layers: int, window: int, uses: Iterable[int]) -> tuple[Device, OffloadSchedule]:
    schedule, device = OffloadSchedule([10 + one for one in range(layers)], window), Device(window)
    for layer in uses:
        device.carry_out(schedule, layer)
        assert schedule.resident_bytes == sum(10 + one for one in device.lying)
        assert schedule.resident_bytes <= schedule.slots * (10 + layers - 1)
    return device, schedule


@given(st.integers(1, 9), st.integers(1, 11), st.data())
def test_whatever_is_used_is_there_and_never_more_than_the_window(
    layers: int, window: int, data: st.DataObject
) -> None:
    run(layers, window, data.draw(st.lists(st.integers(0, layers - 1), max_size=60)))


def steps(layers: int, *, times: int, again: bool) -> list[int]:
    """Forward and backward; `again`: each layer is computed again before its backward pass."""
    up = list(range(layers))
    down = [layer for layer in reversed(up) for _ in range(2 if again else 1)]
    return (up + down) * times


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@given(layers=st.integers(1, 9), window=st.integers(2, 11))
def test_forward_and_backward_nothing_is_waited_for_but_the_very_first(again: bool, layers: int, window: int) -> None:
    device, _ = run(layers, window, steps(layers, times=3, again=again))
    assert device.waited == [0]
    # down to the first and up to the last again: what a window holds at either end is not fetched twice
    turns = 0 if window >= layers else 5
    assert len(device.fetched) == layers + turns * (layers - min(window, layers))


@given(layers=st.integers(1, 9), window=st.integers(2, 11))
def test_a_pass_without_gradients_waits_for_its_first_layers_at_most(layers: int, window: int) -> None:
    """Of several parts of a batch routes are counted first: up, and up again."""
    device, _ = run(layers, window, [*range(layers)] * 3)
    assert set(device.waited) <= {0, 1}


@given(layers=st.integers(2, 9), parts=st.integers(1, 4))
def test_layer_by_layer_over_all_parts_of_a_batch_each_is_fetched_once_a_way(layers: int, parts: int) -> None:
    up = [layer for layer in range(layers) for _ in range(parts)]
    device, _ = run(layers, 2, up + up[::-1])
    assert device.waited == [0]
    assert len(device.fetched) == layers + max(0, layers - 2)


def test_one_at_a_time_is_fetched_when_it_is_used() -> None:
    device, schedule = run(3, 1, steps(3, times=1, again=True))
    assert device.fetched == device.waited == [0, 1, 2, 1, 0]
    assert (schedule.slots, schedule.resident_bytes) == (1, 10)


def test_another_lease_begins_with_nothing() -> None:
    _, schedule = run(4, 2, [0, 1, 2])
    assert {act.layer for act in schedule.forget()} == {2, 3}
    assert not schedule.resident
    assert schedule.use(0) == (FetchLayer(0, 0), UseLayer(0, 0), FetchLayer(1, 1))


@pytest.mark.parametrize(("layers", "window"), [(0, 2), (3, 0)])
def test_a_schedule_of_nothing_is_refused(layers: int, window: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        OffloadSchedule([1] * layers, window)
    with pytest.raises(ValueError, match="layer 3"):
        OffloadSchedule([1] * 3).use(3)
