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
from simulator.adversaries.adversary import Adversary
from simulator.adversaries.attack import Colluders, Conduct, Honest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.engine.lease import GrantedLease
    from worker.train.trainer import LeaseResult

    _Results = dict[LeaseId, tuple[GrantedLease, LeaseResult]]

HONEST = Conduct()
ROUNDS_KEPT = 4
"""For those who send again what they computed before."""


class Group:
    """The liars among the volunteers, each with its attack. Lives as long as its swarm."""

    def __init__(self, members: Mapping[WorkerId, Adversary]) -> None:
        self._members = dict(members)
        self._results: dict[RoundNumber, _Results] = {}
        self._verdicts: dict[WorkerId, tuple[bool, ...]] = {}

    def told(self, worker: WorkerId, *, accepted: bool) -> None:
        """A worker hears what became of its submission."""
        if worker in self._members:
            self._verdicts[worker] = (*self._verdicts.get(worker, ()), accepted)

    def conduct(self, lease: GrantedLease) -> Conduct:
        """How the holder's machine behaves with this lease: as honest ones do, but in rounds of its lies."""
        member = self._members.get(lease.worker)
        return member.attack.conduct if member is not None and member.lies_in(lease.round) else HONEST

    def worked_on(self, lease: GrantedLease, sequences_NL: NDArray[Any]) -> tuple[GrantedLease, NDArray[Any]]:
        """What the holder of `lease` really trains: as leased, but for liars who touch their data or skip steps."""
        member = self._members.get(lease.worker)
        if member is None:
            return lease, sequences_NL
        sequences_NL = member.on_batch(lease.lease_id, lease.round, sequences_NL)
        steps = max(1, round(lease.inner_steps * self.conduct(lease).steps_share))
        if steps == lease.inner_steps:
            return lease, sequences_NL
        count = steps * lease.batch_sequences
        short = dataclasses.replace(lease, inner_steps=steps, data=dataclasses.replace(lease.data, count=count))
        return short, sequences_NL[:count]

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
        view = Colluders(
            own=group[lease.lease_id],
            group=tuple(group.values()),
            earlier=self._earlier(lease),
            verdicts=self._verdicts.get(lease.worker, ()),
        )
        forged = {block: dict(tensors) for block, tensors in member.on_result(view).items()}
        result = known[lease.lease_id][1]
        claimed = dataclasses.replace(result.metrics, inner_steps_done=lease.inner_steps)
        return dataclasses.replace(result, pseudo_gradient=forged, metrics=claimed)

    def _earlier(self, lease: GrantedLease) -> tuple[Honest, ...]:
        before = (kept for number, kept in sorted(self._results.items()) if number < lease.round)
        return tuple(_honest(*pair) for kept in before for pair in kept.values() if pair[0].worker == lease.worker)

    def _known(self, of: RoundNumber) -> _Results:
        self._results = {number: kept for number, kept in self._results.items() if number > of - ROUNDS_KEPT}
        return self._results.setdefault(of, {})


def _honest(lease: GrantedLease, result: LeaseResult) -> Honest:
    return Honest(
        lease_id=lease.lease_id, round=lease.round, columns=lease.columns, pseudo_gradient=result.pseudo_gradient
    )
