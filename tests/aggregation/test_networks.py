"""Networks are proved by the 0-1 principle: what sorts every sequence of zeros and ones sorts everything."""

import itertools

import pytest
import torch

from aggregation.networks import selection_network, sorting_network
from aggregation.reducers import run_network


def run_sorting(values, network):
    values = list(values)
    for low, high in network:
        if values[low] > values[high]:
            values[low], values[high] = values[high], values[low]
    return values


def run_selection(values, network):
    values = list(values)
    for step in network:
        low, high = sorted((values[step.low], values[step.high]))
        if step.needs_min:
            values[step.low] = low
        if step.needs_max:
            values[step.high] = high
    return values


@pytest.mark.parametrize("wires", range(1, 13))
def test_sorts_all_zero_one_inputs(wires):
    network = sorting_network(wires)
    for bits in itertools.product((0, 1), repeat=wires):
        assert run_sorting(bits, network) == sorted(bits)


@pytest.mark.parametrize("wires", range(3, 12))
@pytest.mark.parametrize("ordered", [True, False])
def test_selects_the_ranks_that_are_kept(wires, ordered):
    for first in range(wires):
        for last in range(first, wires):
            kept = tuple(range(first, last + 1))
            network = selection_network(wires, kept, ordered=ordered)
            for bits in itertools.product((0, 1), repeat=wires):
                selected = run_selection(bits, network)[first : last + 1]
                expected = sorted(bits)[first : last + 1]
                assert (selected if ordered else sorted(selected)) == expected


def test_pruning_leaves_out_work():
    halves = sum(step.needs_min + step.needs_max for step in selection_network(16, (7, 8)))
    assert halves < 0.8 * 2 * len(sorting_network(16))


def test_large_swarms_have_networks_too():
    values = [(index * 7919) % 257 for index in range(200)]
    assert run_sorting(values, sorting_network(200)) == sorted(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_sorted_where_they_lie_and_what_is_no_number_is_not_lost(dtype):
    chunk = torch.randn(7, 33, dtype=dtype)
    expected = chunk.sort(0).values
    wires = run_network(list(chunk.unbind(0)), selection_network(7, tuple(range(7)), ordered=True))
    assert torch.equal(torch.stack(wires), expected)
    chunk[2, 5] = torch.nan
    wires = run_network(list(chunk.unbind(0)), selection_network(7, (3,)))
    assert wires[3][5].isnan()
