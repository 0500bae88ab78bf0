"""The second look at what was accepted, when the round closes in which it would count: now its peers are known.

Decides which acceptances do not stand, late ones included, and reads the sequential tests (sequential.py). Holds
always: a submission is compared with those of other people alone, one value each, that were leased in the same round
and so measured on the same sequences; the tests read each submission once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from coordinator.engine import contributions, leases, measuring, pacing, screening
from coordinator.engine.config import ScreeningConfig
from coordinator.engine.medians import NormMedians, medians_of
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import Verdict
from coordinator.engine.rows import LeaseRecord, SeenNorm
from coordinator.engine.screening import Measured, Peers
from coordinator.engine.sequential import MIN_PLACES, RankTest, after_place, standing_below
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.ids import BlockId, RoundNumber, Version

FULL_STEPS_A_GAIN = 4.0
"""The quarter that gains are measured at, to the whole: by how much, to first order, all of it would gain."""
MOST_AGE = 4
"""Encodings that a residual goes back, from which on no more of it shows. Of noise, the ternary codec sends 0.90 of
the length in its first encoding, 0.98 in the second, then 0.996 to 1."""
OWN_DATA_SHORTFALL = 0.5
"""Of what its peers gain on their own sequences beyond what they gain on any: far above what copies show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """The accepted submissions of one round, whether or not they have counted yet; none of those without weight, who
    must not say what is usual."""

    firsts: Mapping[int, LeaseRecord]
    """One of each person's."""
    alike: Mapping[tuple[int, Version, int, int], Mapping[int, LeaseRecord]]
    """One of each person's, by steps, base version, number of columns and age of residuals."""
    holders: Mapping[BlockId, Sequence[SeenNorm]]
    """What everybody found of a block."""

    @classmethod
    def of(cls, state: EngineState, number: RoundNumber) -> _Round:
        """As it stands now."""
        firsts: dict[int, LeaseRecord] = {}
        alike: dict[tuple[int, Version, int, int], dict[int, LeaseRecord]] = {}
        holders: dict[BlockId, list[SeenNorm]] = {}
        for record in state.leases.values():
            if record.lease.round != number or record.status is not LeaseStatus.ACCEPTED:
                continue
            shadow = record.lease.audits is not None  # of which nothing was measured
            if shadow or contributions.share_of(state, record) == 0.0:
                continue
            seen = _seen(state, record)
            firsts.setdefault(seen.person, record)
            alike.setdefault(_kind(record), {}).setdefault(seen.person, record)
            for norm in record.norms:
                holders.setdefault(norm.block, []).append(replace(seen, norm_l2=norm.norm_l2))
        return cls(firsts=firsts, alike=alike, holders=holders)

    def shares(self, record: LeaseRecord, person: int) -> bool:
        """Whether enough others hold each block of it, so that no outer step takes it whole."""
        held = (
            {seen.person for seen in self.holders.get(block, ()) if seen.person != person}
            for block in record.lease.blocks
        )
        return all(len(others) >= screening.MIN_GAINS for others in held)


_Judged = Callable[[EngineState, LeaseRecord, _Round, NormMedians], Verdict | None]


def is_put_off(turn: Turn) -> bool:
    """Have measured here what `look_again` would refuse on a worker's word (delegation.py): not before that is done."""
    if not turn.state.config.screening.enabled:
        return False
    found = [_verdicts(turn.state, judged) for judged in (_gain_against_peers, _harm_against_peers)]
    doubted = {record.lease.lease_id: record for verdicts in found for record, _ in verdicts if record.measured_by}
    for record in doubted.values():
        measuring.measure_again(turn, record)
    return bool(doubted)


def look_again(turn: Turn) -> None:
    """Refuse what was accepted before there were peers to compare it with, and falls short of them or outgrows them."""
    state, config = turn.state, turn.state.config.screening
    if not config.enabled:
        return
    for judged in (_gain_against_peers, _harm_against_peers, _norms_against_peers):
        for record, verdict in _verdicts(state, judged):
            leases.withdraw(turn, record.lease.lease_id, verdict)
    _note_spread(state)
    _read_tests(state)


def _verdicts(state: EngineState, judged: _Judged) -> list[tuple[LeaseRecord, Verdict]]:
    """What speaks against any of the accepted."""
    countable = contributions.countable(state)
    rounds = {number: _Round.of(state, number) for number in {record.lease.round for record in countable}}
    heard = [record for record in countable if contributions.share_of(state, record) > 0.0]
    medians = medians_of(remembered(state, heard))
    found = ((record, judged(state, record, rounds[record.lease.round], medians)) for record in countable)
    return [(record, verdict) for record, verdict in found if verdict is not None]


def _note_spread(state: EngineState) -> None:
    """By how much people differed this round, and, half as much each round before, earlier."""
    firsts = _Round.of(state, state.round.round).firsts.values()
    shares = [pacing.rate_share(state.config, record.lease) for record in firsts]
    if not all(shares):
        return  # at a rate of nothing nobody differs, and it says nothing of other rates
    spread = screening.spread_of([record.heldout_gain / share for record, share in zip(firsts, shares, strict=True)])
    if spread is not None:
        state.gain_spread = (state.gain_spread + spread) / 2.0 if state.gain_spread else spread


def remembered(state: EngineState, records: Iterable[LeaseRecord]) -> dict[BlockId, tuple[SeenNorm, ...]]:
    """The norms that the run remembers, with those of these submissions."""
    new = ((_seen(state, record), record.norms) for record in records)
    return screening.remember(state.norm_history, new, state.config.screening.norm_history)


def _gain_against_peers(
    state: EngineState, record: LeaseRecord, current: _Round, _medians: NormMedians
) -> Verdict | None:
    others = _of_like_age(record, _without(current.firsts, _person(state, record)))
    gains = [screening.gain_of(other) for other in others]
    spread = screening.spread_of([one.gain for one in gains])
    # the larger: of few people the spread of one round may be small by chance
    usual = pacing.gain_spread(state, record.lease)
    peers = Peers(gain=_middle(gains), gain_spread=max(spread or 0.0, usual))
    share = pacing.steps_share(state, record.lease)
    return screening.judge_gain(state.config.screening, screening.gain_of(record), peers, share)


def _harm_against_peers(
    state: EngineState, record: LeaseRecord, current: _Round, _medians: NormMedians
) -> Verdict | None:
    person = _person(state, record)
    others = _of_like_age(record, _without(current.firsts, person)) if current.shares(record, person) else []
    full = [screening.full_gain_of(other) for other in others]
    peers = Peers(full=_middle(full), full_spread=screening.spread_of([one.gain for one in full]) or 0.0)
    return screening.judge_harm(state.config.screening, screening.full_gain_of(record), peers)


def _norms_against_peers(
    state: EngineState, record: LeaseRecord, current: _Round, medians: NormMedians
) -> Verdict | None:
    config, person = state.config.screening, _person(state, record)
    against = screening.judge_norms(config, record.norms, person, medians)
    return against or screening.judge_small_columns(config, record.norms, person, medians, current.holders)


def _read_tests(state: EngineState) -> None:
    """Where each submission stands among those of as many steps and columns, from the same version."""
    config = state.config.screening
    unread = [record for record in contributions.countable(state) if not record.compared]
    rounds = {number: _Round.of(state, number) for number in {record.lease.round for record in unread}}
    for record in unread:
        state.update_lease(record.lease.lease_id, compared=True)
        others = _without(rounds[record.lease.round].alike.get(_kind(record), {}), _person(state, record))
        if len(others) + 1 < MIN_PLACES:
            continue
        worker = state.workers[record.lease.worker]
        short = config.gain_shortfall * max(0.0, median(other.heldout_gain for other in others))
        gains = [other.heldout_gain - short for other in others]
        full = [other.full_gain - FULL_STEPS_A_GAIN * short for other in others]
        state.update_worker(
            worker.worker,
            gain_test=_after(config, worker.gain_test, record.heldout_gain, gains),
            harm_test=_after(config, worker.harm_test, record.full_gain, full),
            data_test=_data_test(config, worker.data_test, record, others),
        )


def _data_test(config: ScreeningConfig, test: RankTest, record: LeaseRecord, others: Sequence[LeaseRecord]) -> RankTest:
    own, theirs = _own_lead(record), [_own_lead(other) for other in others]
    found = [lead for lead in theirs if lead is not None]
    if own is None or len(found) + 1 < MIN_PLACES:
        return test
    short = OWN_DATA_SHORTFALL * max(0.0, median(found))
    return _after(config, test, own, [lead - short for lead in found])


def _own_lead(record: LeaseRecord) -> float | None:
    """Gain on its own sequences beyond that on held-out ones, which all of a round have in common."""
    return None if record.own_gain is None else record.own_gain - record.full_gain


def _after(config: ScreeningConfig, test: RankTest, own: float, others: Sequence[float]) -> RankTest:
    below = standing_below(own, others)
    return after_place(test, below=below, places=len(others) + 1, rate=config.doubt_rate)


def _kind(record: LeaseRecord) -> tuple[int, Version, int, int]:
    lease = record.lease
    return lease.inner_steps, lease.base_version, len(lease.columns), _age(record)


def _age(record: LeaseRecord) -> int:
    """0, 1, 2 and more: what is sent by a codec that feeds back its errors grows for its first few encodings."""
    return min(record.residual_age, MOST_AGE)


def _of_like_age(record: LeaseRecord, others: Sequence[LeaseRecord]) -> Sequence[LeaseRecord]:
    """Those whose residuals are as old, where there are enough of them; else all."""
    alike = [other for other in others if _age(other) == _age(record)]
    return alike if len(alike) >= screening.MIN_GAINS else others


def _without(by_person: Mapping[int, LeaseRecord], person: int) -> list[LeaseRecord]:
    return [record for who, record in by_person.items() if who != person]


def _middle(found: Sequence[Measured]) -> Measured | None:
    if len(found) < screening.MIN_GAINS:
        return None
    return Measured(gain=median(one.gain for one in found), se=median(one.se for one in found))


def _person(state: EngineState, record: LeaseRecord) -> int:
    return state.index.person_place(record.lease.worker)


def _seen(state: EngineState, record: LeaseRecord) -> SeenNorm:
    """Whose it is; the norm is yet to be filled in."""
    worker = record.lease.worker
    trusted = state.workers[worker].trusted
    return SeenNorm(person=state.index.person_place(worker), norm_l2=0.0, trusted=trusted)
