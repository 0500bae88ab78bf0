"""Byzantine workers of a virtual swarm, who tell each other everything.

Decides what a colluder sees when it has to answer: the honest pseudo-gradients of all leases that the group holds in
that round, those still in training included. A lease is a pure function, so the group can compute each of them at
once: nobody has to wait, and the attack is as well informed as such a group can be. Touches nothing but memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from protocol.ids import LeaseId, RoundNumber, WorkerId
from simulator.adversary import Adversary
from simulator.attack import Colluders, Honest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.engine.lease import GrantedLease
    from worker.train.trainer import LeaseResult

    _Results = dict[LeaseId, tuple[GrantedLease, LeaseResult]]

ROUNDS_KEPT = 2
"""A submission that was committed in time may come one round late."""


class Group:
    """The liars among the volunteers, each with its attack. Lives as long as its swarm."""

    def __init__(self, members: Mapping[WorkerId, Adversary]) -> None:
        self._members = dict(members)
        self._results: dict[RoundNumber, _Results] = {}

    def on_batch(self, lease: GrantedLease, sequences_NL: NDArray[Any]) -> NDArray[Any]:
        """What the holder of `lease` trains on: as assigned, but for liars who touch their data."""
        member = self._members.get(lease.worker)
        return sequences_NL if member is None else member.on_batch(lease.lease_id, sequences_NL)

    def answer(
        self, lease: GrantedLease, leases: Iterable[GrantedLease], train: Callable[[GrantedLease], LeaseResult]
    ) -> LeaseResult:
        """What is sent for `lease`; `leases` are those that were granted in the present round, to whomever."""
        member = self._members.get(lease.worker)
        if member is None:
            return train(lease)
        known = self._known(lease.round)
        for other in (lease, *leases):
            alike = other.round == lease.round and other.base_version == lease.base_version
            if alike and other.worker in self._members and other.lease_id not in known:
                known[other.lease_id] = other, train(other)
        group = {lease_id: _honest(*known[lease_id]) for lease_id in sorted(known)}
        sent = member.on_result(Colluders(own=group[lease.lease_id], group=tuple(group.values())))
        forged = {block: dict(tensors) for block, tensors in sent.items()}
        return dataclasses.replace(known[lease.lease_id][1], pseudo_gradient=forged)

    def _known(self, of: RoundNumber) -> _Results:
        self._results = {number: kept for number, kept in self._results.items() if number > of - ROUNDS_KEPT}
        return self._results.setdefault(of, {})


def _honest(lease: GrantedLease, result: LeaseResult) -> Honest:
    return Honest(
        lease_id=lease.lease_id, round=lease.round, columns=lease.columns, pseudo_gradient=result.pseudo_gradient
    )
