"""No input makes a decoder crash, hang or allocate beyond its bound. A few hundred inputs here; a million in the soak.

`python -m tests.fuzz` is the soak by hand, for one decoder or all, in pieces if need be.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.check import Broken, Hung, alarm, check, check_memory
from tests.fuzz.soak import Result, row, soak
from tests.fuzz.target import Source, Target
from tests.fuzz.targets import TARGETS, coordinator, downloads, worker
from tests.fuzz.targets.coordinator_world import world

PIECE = 50_000
NOBODY_ANSWERS = {"bootstrap"}
"""A recorded handshake never ends well: its other side has chosen another random number."""

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_valid_samples_are_taken(target):
    taken = [sample for sample in target.valid() if check(target, sample)]
    assert taken or target.name in NOBODY_ANSWERS, "mutations would not get past the first check either"


@every_target
def test_any_input_is_taken_or_refused(target):
    source = Source(target, seed=1)
    for sample in target.valid():  # what is made once and kept does not count
        check(target, sample)

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(number=st.integers(0, 2**32), junk=st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=200)))
    def holds(number: int, junk: bytes | None) -> None:
        data = source[number] if junk is None else junk
        with alarm():
            check_memory(target, data)

    holds()


def test_every_method_is_fuzzed_on_both_sides():
    """Whoever adds a method adds its request to the coordinator's targets, and its reply to the worker's."""
    served = {method.rpartition("/")[2] for method in world().handlers}
    assert served == {*coordinator.KINDS, "Upload", "Download"}
    assert {*coordinator.KINDS} == {*coordinator.WORKERS, *coordinator.OPERATORS, *coordinator.STRANGERS}
    asked = {*worker.CALLS, *worker.REPLIES, "GetManifest", "Download", "AskAudit", "AnswerMeasure"}
    asked |= {"ListReceipts", "Leave", "RotateKey"}  # what is signed in a reply: tests/worker/test_kept_receipts.py
    asked |= {"Sources", "Archive"}  # what a worker makes of their replies: targets sources-reply, archive-record
    assert asked == served - {*coordinator.OPERATORS, "Check", "Follow", "Fetch"}  # a worker follows nobody
    fetched = {"signed-manifest", "archive-record", "block-download", "sequences-download"}
    assert fetched == {t.name for t in downloads.TARGETS}


@pytest.mark.soak
@every_target
def test_a_million_inputs_are_taken_or_refused(target):
    done = Result()
    while done.inputs < 1_000_000:
        done = done.plus(soak(target, inputs=PIECE, first=done.inputs))
        print(f"\r{row(target.name, done)}", end="", flush=True)
    print()


def broken(decode, **changes) -> Target:
    return Target(name="broken", decode=decode, refusals=(ValueError,), samples=lambda: [b"7"], **changes)


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


def test_the_soak_names_the_input_that_breaks_and_pieces_add_up():
    def three_bytes(data: bytes) -> None:
        if len(data) == 3:
            raise ZeroDivisionError

    target = broken(three_bytes)
    source = Source(target, seed=0)
    number = next(number for number in range(10_000) if len(source[number]) == 3)
    with pytest.raises(Broken, match=rf"input {number}: .*ZeroDivisionError"):
        soak(broken(lambda data: three_bytes(data) if data == source[number] else None), inputs=1, first=number)
    whole, halves = soak(broken(int), inputs=600), [soak(broken(int), inputs=300, first=first) for first in (0, 300)]
    assert halves[0].plus(halves[1]).taken == whole.taken > 0
    assert whole.inputs == 600


def test_memory_that_no_trace_sees_is_noticed(monkeypatch):
    grown = iter(range(0, 1 << 40, 200 << 20))
    monkeypatch.setattr("tests.fuzz.soak._resident_peak_bytes", lambda: next(grown))
    with pytest.raises(Broken, match="memory grew"):
        soak(broken(int), inputs=64)


def test_an_input_follows_from_its_number_alone():
    for name in ("manifest", "metadata", "lease", "upload-call"):
        there, again = (Source(TARGETS[name], seed=0) for _ in range(2))
        assert [there[number] for number in (7, 8, 7)] == [again[7], again[8], there[7]]
    source = Source(TARGETS["manifest"], seed=0)
    assert len({source[number] for number in range(200)}) > 150


@pytest.mark.parametrize("name", ["signed-manifest", "metadata", "enrol-reply", "dataset-card"])
def test_mutations_get_past_the_seal(name):
    """Without it none but the samples themselves would: a signature or digest refuses all others."""
    target = TARGETS[name]
    source, valid = Source(target, seed=0), set(target.valid())
    inputs = [source[number] for number in range(1500)]
    assert sum(check(target, data) for data in inputs if data not in valid) >= 3
