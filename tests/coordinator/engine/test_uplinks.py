"""Uplinks: measured by the coordinator alone, in one go or not at all, and part of when a lease ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine import events as ev
from coordinator.engine import pacing, quorum, speeds
from coordinator.engine.config import EngineConfig
from coordinator.engine.rows import UploadReport, WorkerRecord
from protocol.ids import RunId, WorkerId

quick = settings(max_examples=200, deadline=None, derandomize=True)


def uploads_of(s, name: str) -> list[float]:
    return [report.upload_s for report in s.engine.state.workers[WorkerId(name)].uploads]


def committed(swarm, **changes):
    """Worker a has committed at 8 s, after 8 steps; b and c are at work."""
    s = swarm(heartbeat_interval_s=1e6, lease_ttl_s=1e6, round_deadline_s=1e6, **{"quorum": 3, **changes})
    s.join("a", "b", "c")
    s.at(8)
    s.commit("a", payload_bytes=4000)
    return s


def test_an_upload_in_one_go_is_measured(swarm):
    s = committed(swarm)
    s.at(28)
    s.upload("a")
    assert s.engine.state.workers["a"].uploads == (UploadReport(payload_bytes=4000, upload_s=20.0),)


def test_uploading_twice_is_measured_once(swarm):
    s = committed(swarm)
    s.at(28)
    s.upload("a")
    s.at(100)
    s.upload("a")
    assert uploads_of(s, "a") == [20.0]


@pytest.mark.parametrize("between", ["commit again", "silence", "restart"])
def test_an_interrupted_upload_is_not(swarm, between):
    s = committed(swarm)
    s.at(18)
    if between == "commit again":
        s.commit("a", payload_bytes=4000)
    elif between == "silence":
        s.silent("a")
    else:
        s.handle(ev.CoordinatorResumed(at_s=s.now_s))
    s.at(500)
    s.upload("a")
    assert uploads_of(s, "a") == []


def test_an_upload_beside_which_the_next_lease_is_asked_for_is(swarm):
    s = committed(swarm)
    s.ask("a")
    s.at(28)
    s.upload("a")
    assert uploads_of(s, "a") == [20.0]


def test_what_waited_for_the_line_is_measured_from_when_it_was_free(swarm):
    """The round goes on without a, which takes part in the next one while the first submission is still sent."""
    s = committed(swarm, quorum=2, min_grace_s=1.0, grace_share=0.0)
    s.ask("a")
    s.submit("b", "c")
    s.ask("b", "c")
    s.at(s.engine.next_wakeup_s())
    assert s.phase == "aggregating"
    s.aggregated()
    assert s.lease("a").round == 2
    s.at(30)
    s.commit("a", payload_bytes=4000)
    s.at(50)
    s.upload("a", s.record("r1.1").lease)
    s.at(65)
    s.upload("a")
    assert uploads_of(s, "a") == [42.0, 15.0]


def test_bytes_that_never_came_count_as_at_least_so_long(swarm):
    """Or an uplink that is always too slow to be waited for would never be seen at all."""
    s = committed(swarm, max_staleness=0, quorum=2)
    s.submit("b", "c")
    s.at(s.engine.next_wakeup_s())
    assert s.phase == "aggregating"
    s.aggregated()
    assert s.record("r1.1").status == "expired"
    assert uploads_of(s, "a") == [s.now_s - 8]


def test_one_odd_upload_does_not_move_the_median():
    uploads: tuple[UploadReport, ...] = ()
    for upload_s in (10.0, 10.0, 3000.0, 10.0):
        uploads = pacing.last_few(uploads, UploadReport(payload_bytes=1000, upload_s=upload_s))
    assert speeds.upload_s(worker_with(uploads)) == pytest.approx(10.0)
    small = (*uploads, UploadReport(payload_bytes=100, upload_s=1.0))  # a spare's, of fewer columns
    assert speeds.upload_s(worker_with(small)) == pytest.approx(10.0)


def worker_with(uploads: tuple[UploadReport, ...]) -> WorkerRecord:
    return WorkerRecord(
        worker=WorkerId("w"), name="", trusted=False, max_columns=0, tokens_per_s=0.0, heard_at_s=0.0, uploads=uploads
    )


# ---- steps


def second_round(swarm, uploads_s: dict[str, float], step_s: dict[str, float] | None = None, **changes):
    """The second round, after a first one of 8 steps with these uplinks."""
    patient = {"heartbeat_interval_s": 1e6, "lease_ttl_s": 1e6, "round_deadline_s": 1e6, "quorum": 99, "replicas": 99}
    s = swarm(**{**patient, **changes})
    s.join(*uploads_s)
    takes = step_s or {}
    commits = [(8 * takes.get(name, 1.0), 0, name) for name in uploads_s]
    arrivals = [(at_s + uploads_s[name], 1, name) for at_s, _, name in commits]
    for at_s, is_upload, name in sorted(commits + arrivals):
        s.at(at_s)
        if not is_upload:
            s.commit(name)
            continue
        s.upload(name)
        s.measured(s.lease(name).lease_id)
        s.ask(name)
    s.aggregated()
    return s


def test_a_slow_uplink_gets_fewer_steps_and_ends_with_the_others(swarm):
    s = second_round(swarm, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 6.0})
    steps = {name: s.lease(name).inner_steps for name in "abcd"}
    assert steps == {"a": 8, "b": 8, "c": 8, "d": 5}  # 5 x 1 s + 6 s is 11 s, within a quarter of 9 s
    ends = [pacing.expected_end_s(s.engine.state.workers[n], pacing.pace_of(s.engine.state), steps[n]) for n in "abcd"]
    assert ends == [9.0, 9.0, 9.0, 11.0]


def test_an_uplink_that_fits_into_no_round_gets_an_eighth(swarm):
    s = second_round(swarm, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 500.0})
    assert s.lease("d").inner_steps == 1


def test_who_fits_into_no_round_is_leased_in_its_first_wave_alone(swarm):
    s = second_round(swarm, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 500.0})
    s.give_back("d")
    pace, state = pacing.pace_of(s.engine.state), s.engine.state
    assert pacing.eighths_by_time_left(state, pace, WorkerId("d")) == 1
    s.after(3)
    s.tick()
    assert pacing.eighths_by_time_left(state, pace, WorkerId("d")) == 0


def test_half_of_the_swarm_does_the_whole_recipe_whatever_its_uplinks(swarm):
    s = second_round(swarm, {"a": 200.0, "b": 0.0, "c": 0.0}, {"a": 1.0, "b": 13.0, "c": 1.0})
    assert {name: s.lease(name).inner_steps for name in "abc"} == {"a": 1, "b": 8, "c": 8}


def test_the_deadline_stays_about_the_commit(swarm):
    s = second_round(swarm, {"a": 1.0, "b": 1.0, "c": 100.0}, min_lease_s=1.0)
    assert {n: s.lease(n).deadline_s - s.now_s for n in "abc"} == {"a": 24.0, "b": 24.0, "c": 3.0}


def test_the_grace_follows_uploads(swarm):
    s = committed(swarm, grace_share=0.5)
    s.at(28)
    s.upload("a")
    s.measured("r1.1")
    assert quorum.grace_s(s.engine.state) == 14.0


def test_a_lease_that_could_be_committed_but_not_uploaded_within_the_grace_is_not_granted_again(swarm):
    s = second_round(swarm, {"a": 1.0, "b": 1.0, "c": 6.0}, quorum=2, grace_share=1.0)
    assert s.lease("c").inner_steps == 5
    s.after(8)
    s.commit("a")
    s.commit("b")
    s.after(1)
    for name in "ab":
        s.upload(name)
        s.measured(s.lease(name).lease_id)
    assert s.phase == "grace"
    s.ask("c")
    assert "needs 11 s; 9 s of grace are left" in s.leases("c")[-1].end_reason


def test_fast_workers_do_more_only_where_the_run_says_so(swarm):
    quick_step = {"a": 0.5, "b": 0.1}
    uplinks = dict.fromkeys("abcde", 0.0)
    assert [second_round(swarm, uplinks, quick_step).lease(n).inner_steps for n in "abcde"] == [8] * 5
    more = second_round(swarm, uplinks, quick_step, most_steps_share=1.5)
    assert [more.lease(n).inner_steps for n in "abcde"] == [12, 12, 8, 8, 8]


class _Known:
    """Speeds of one worker among others."""

    any_measured = True

    def __init__(self, step_s: float, fixed_s: float, reference_end_s: float) -> None:
        self._step_s, self._fixed_s, self.reference_end_s = step_s, fixed_s, reference_end_s

    def step_s(self, worker: WorkerId) -> float:
        return self._step_s

    def fixed_s(self, worker: WorkerId) -> float:
        return self._fixed_s


seconds = st.floats(1e-9, 1e9)


@quick
@given(seconds, seconds, st.floats(0, 1e9), st.floats(0, 1e9), seconds, st.sampled_from([1.0, 1.5, 2.0]))
def test_steps_are_bounded_and_fall_with_every_second(step_s, other_step_s, fixed_s, other_fixed_s, end_s, most):
    config = EngineConfig(run_id=RunId("run"), columns=1, train_sequences=10**6, most_steps_share=most)

    def eighths(step_s: float, fixed_s: float) -> int:
        pace = pacing.Pace(speeds=_Known(step_s, fixed_s, end_s), recipe_steps=8)  # type: ignore[arg-type]
        return pacing.eighths_by_speed(config, pace, WorkerId("w"))

    better = eighths(min(step_s, other_step_s), min(fixed_s, other_fixed_s))
    worse = eighths(max(step_s, other_step_s), max(fixed_s, other_fixed_s))
    assert 1 <= worse <= better <= 8 * most
    ends_s = fixed_s + eighths(step_s, fixed_s) * step_s
    slack = 1.0 + config.pace_tolerance + 1e-6
    assert eighths(step_s, fixed_s) == 1 or ends_s <= end_s * slack, "more than ends near the median worker's end"
