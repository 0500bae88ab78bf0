"""Guards of a standby: who may follow a run, what its leader may write, which epoch a worker goes with."""

from __future__ import annotations

from tests.guards.cuts import never
from tests.guards.guard import Guard, guard

ONE = "test_standby.py::test_a_standby_link_is_for_one_machine"
DAY = "test_standby.py::test_a_standby_link_expires_unless_it_was_redeemed"
PLACE = "test_standby.py::test_a_leader_writes_nothing_outside_of_the_run"
EPOCH = "test_standby.py::test_a_worker_goes_back_to_no_lower_epoch"
OUTSIDE = "a leader that writes outside of the run"

STANDBY: tuple[Guard, ...] = (
    guard("a standby link", never("coordinator.run:admit", "admission.key", says="another machine"), ONE),
    guard("a standby link", never("coordinator.run:admit", "now_s > admission.expires_at_s"), DAY),
    guard(OUTSIDE, never("coordinator.run:place_of", "parts[0] in _STAYS or parts[0].startswith('.')"), PLACE),
    guard("a coordinator of a lower epoch", never("worker:require_latest", "epoch < known"), EPOCH),
)
