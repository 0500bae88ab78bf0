"""The permutation is a bijection for every size, the same everywhere, and different for every seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.datasets.permutation import permuted


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_is_a_bijection(size, seed):
    assert np.array_equal(np.sort(permuted(seed, size, 0, size)), np.arange(size))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 10**12), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_a_range_is_a_slice_of_the_whole(size, seed, data):
    start = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, min(40, size - start)))
    got = permuted(seed, size, start, count)
    one_by_one = [int(permuted(seed, size, start + i, 1)[0]) for i in range(count)]
    assert got.tolist() == one_by_one
    assert len(set(one_by_one)) == count
    assert all(0 <= value < size for value in one_by_one)


def test_is_the_same_on_every_machine():
    """Golden: leases of old journals name these; a change here is a change of the wire."""
    assert permuted(7, 1000, 0, 8).tolist() == GOLDEN_SMALL
    assert permuted(2**64 - 1, 10**9, 10**9 - 4, 4).tolist() == GOLDEN_LARGE


GOLDEN_SMALL = [542, 964, 475, 125, 442, 855, 219, 549]
GOLDEN_LARGE = [537115579, 328272303, 773356681, 574899136]


def test_seeds_and_sizes_give_unlike_orders():
    plain = permuted(1, 4096, 0, 4096)
    for other in (permuted(2, 4096, 0, 4096), np.arange(4096)):
        assert np.count_nonzero(plain == other) < 20
    assert abs(np.corrcoef(plain, np.arange(4096))[0, 1]) < 0.06


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 11), (11, 0), (5, -1)])
def test_positions_outside_are_refused(start, count):
    with pytest.raises(ValueError, match="positions"):
        permuted(0, 10, start, count)
