"""No input makes a decoder crash, hang or allocate beyond its bound. A few hundred inputs here; a million in the soak.

`python -m tests.fuzz --inputs 1000000` is the soak by hand, for one decoder or all.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import soak
from tests.fuzz.check import Broken, Hung, alarm, check, check_memory
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_valid_samples_are_taken(target):
    if target.name == "signed-manifest":
        return  # its samples are signed by nobody
    taken = [sample for sample in target.samples() if check_memory(target, sample)]
    assert taken, "none of the samples gets past the first check, so mutations would not either"


@every_target
def test_any_input_is_taken_or_refused(target):
    samples = target.samples()
    for sample in samples:  # what is made once and kept does not count
        check(target, sample)

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32), junk=st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=200)))
    def holds(seed: int, junk: bytes | None) -> None:
        data = mutated(Random(seed), samples) if junk is None else junk
        with alarm():
            check_memory(target, data)

    holds()


@every_target
@pytest.mark.soak
def test_a_million_inputs_are_taken_or_refused(target):
    soak(target, inputs=1_000_000, seed=0)


def broken(decode) -> Target:
    return Target(name="broken", decode=decode, refusals=(ValueError,), samples=lambda: [b"x"])


def test_the_check_finds_crashes_greed_and_hangs():
    with pytest.raises(Broken, match="ZeroDivisionError"):
        check(broken(lambda data: 1 // 0), b"")
    with pytest.raises(Broken, match="allocated"):
        check_memory(broken(lambda data: bytes(10_000_000)), b"")
    assert check(broken(int), b"7")
    assert not check(broken(int), b"x")

    def endless(data: bytes) -> None:
        while True:
            pass

    with pytest.raises(Broken) as caught, alarm(0.05):
        check(broken(endless), b"")
    assert isinstance(caught.value.__cause__, Hung)


def test_mutations_follow_from_the_seed_alone():
    samples = TARGETS["manifest"].samples()
    assert [mutated(Random(7), samples) for _ in range(3)] == [mutated(Random(7), samples)] * 3
    assert len({mutated(Random(seed), samples) for seed in range(200)}) > 150
