"""What a start keeps of the submissions that an interrupted process left: what may still count, and nothing else."""

from __future__ import annotations

from coordinator.engine.phases import Phase
from coordinator.run.opened import submissions_kept
from coordinator.run.verify import payloads_needed
from tests.coordinator.engine.conftest import Swarm, small_config


def kept(s: Swarm) -> set[str]:
    return {str(lease_id) for lease_id, _ in submissions_kept(s.engine)}


def test_a_submission_is_kept_until_its_outer_step_is_taken_and_not_longer() -> None:
    s = Swarm(small_config())
    s.join("a", "b", "c")
    assert kept(s) == set()
    s.at(10)
    s.commit("a")
    assert kept(s) == {"r1.1"}  # its upload may go on where it broke
    s.upload("a")
    s.submit("b")
    assert kept(s) == {"r1.1", "r1.2"}
    s.measured("r1.1")
    s.submit("c")
    assert s.phase is Phase.AGGREGATING
    assert kept(s) == {"r1.1", "r1.2", "r1.3"} == {lease_id for lease_id, _ in payloads_needed(s.engine.state)}
    s.aggregated()
    assert kept(s) == set()


def test_a_late_one_is_kept_for_the_round_that_takes_it() -> None:
    s = Swarm(small_config())
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b")
    s.commit("c")
    s.at(16)
    s.aggregated()
    s.upload("c")
    assert kept(s) == {"r1.3"}
    s.measured("r1.3")
    assert kept(s) == {"r1.3"}
