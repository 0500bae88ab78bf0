"""The swarm in one process: it ends, repeats itself, goes on after an interruption, and lives with dropouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from coordinator.datasets import prepare
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from protocol.ids import BlockId, LeaseId
from simulator.adversaries.adversary import Adversary
from simulator.adversaries.attack import Attack, Colluders
from simulator.adversaries.table import ATTACKS
from simulator.virtual.inner import EagerLeases, KeptMoments, PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer, as_liar

ROUNDS, STEPS = 3, 2
CREW = tuple(Volunteer(name=str(number), max_columns=4) for number in range(3))


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare([str(corpus)], folder)
    return folder


def made(folder: Path, data: Path, **engine: Any) -> RunFolder:
    settings = RunSettings(
        preset="tiny",
        data=str(data),
        codec="bf16",  # a volunteer here keeps no residual when its process ends
        sequence_length=16,
        heldout_limit=4,
        screening_sequences=2,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": ROUNDS,
            "min_workers": len(CREW),
            "gather_s": 0.0,
            "heartbeat_interval_s": 1.0,
            "checkpoint_every": 0,
            # two steps of two short sequences teach nothing that a held-out batch could tell from noise
            "screening": {"enabled": False},
            "inner": {"inner_steps": STEPS, "batch_sequences": 2},
            **engine,
        },
    )
    return init_run(folder, settings)


def opened(run: RunFolder) -> OpenedRun:
    return OpenedRun.open(run, STILL)


def weights(run: OpenedRun) -> Mapping[BlockId, str]:
    manifest = run.versions.manifest(run.engine.state.manifest)
    return {block: ref.digest for block, ref in manifest.blocks.items()}


def played(run: RunFolder, crew: Sequence[Volunteer] = CREW, seed: int = 0) -> tuple[Mapping[BlockId, str], OpenedRun]:
    parts = opened(run)
    VirtualSwarm(parts, crew, PureLeases(Shards(parts.layout)), seed=seed).play()
    found = weights(parts)
    parts.close()
    return found, parts


def test_a_run_is_played_to_its_end_and_again_to_the_same_bits(tmp_path: Path, data: Path) -> None:
    first, run = played(made(tmp_path / "a", data))
    second, _ = played(made(tmp_path / "b", data))
    assert run.engine.state.version == ROUNDS
    assert run.engine.state.totals.submissions_accepted == ROUNDS * len(CREW)
    assert first == second


@pytest.mark.parametrize("cut", [3, 12, 25, 40])
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, data: Path, cut: int) -> None:
    whole, _ = played(made(tmp_path / "whole", data))
    folder = made(tmp_path / "cut", data)
    parts = opened(folder)
    swarm = VirtualSwarm(parts, CREW, PureLeases(Shards(parts.layout)), seed=0)
    for _ in range(cut):
        swarm.advance()
    assert not swarm.is_over
    parts.close()
    resumed, run = played(folder)
    assert run.engine.state.version == ROUNDS
    assert resumed == whole


def test_vanished_volunteers_come_back_and_the_run_ends(tmp_path: Path, data: Path) -> None:
    crew = [Volunteer(name=str(number), max_columns=4, dropout=0.5) for number in range(3)]
    _, run = played(made(tmp_path / "run", data, max_rounds=4), crew)
    totals = run.engine.state.totals
    assert run.engine.state.version >= 3  # a round that nobody came back for is opened again, or publishes nothing
    assert totals.leases_expired > 0
    assert totals.submissions_accepted > 0


def test_slow_volunteers_do_fewer_steps(tmp_path: Path, data: Path) -> None:
    crew = [Volunteer(name="fast"), Volunteer(name="middle"), Volunteer(name="slow", step_s=4.0)]
    parts = opened(made(tmp_path / "run", data, inner={"inner_steps": 8, "batch_sequences": 1}))
    VirtualSwarm(parts, crew, PureLeases(Shards(parts.layout)), seed=0).play()
    by_worker: dict[str, set[int]] = {}
    for record in parts.engine.state.leases.values():
        by_worker.setdefault(record.lease.worker, set()).add(record.lease.inner_steps)
    assert by_worker[crew[0].worker] == {8}
    assert max(by_worker[crew[2].worker]) <= 4
    parts.close()


def test_kept_moments_begin_as_fresh_ones_and_then_differ(tmp_path: Path, data: Path) -> None:
    parts = opened(made(tmp_path / "run", data))
    base = parts.versions.load_blocks(parts.versions.manifest(parts.engine.state.manifest))
    fresh, kept = PureLeases(Shards(parts.layout)), KeptMoments(Shards(parts.layout))
    swarm = VirtualSwarm(parts, CREW, fresh, seed=0)
    while not parts.engine.state.leases:
        swarm.advance()
    lease = next(iter(parts.engine.state.leases.values())).lease
    tokens = parts.dataset.sequences(lease.data.seed, lease.data.start, lease.data.count, 16).astype("int64")
    worker = CREW[0].worker
    firsts = [training(worker, lease, base, tokens).pseudo_gradient for training in (fresh, kept)]
    seconds = [training(worker, lease, base, tokens).pseudo_gradient for training in (fresh, kept)]
    assert _equal(*firsts)
    assert _equal(firsts[0], seconds[0])
    assert not _equal(*seconds)
    parts.close()


def test_an_eager_lease_begins_at_the_version_before_less_its_own_share(tmp_path: Path, data: Path) -> None:
    parts = opened(made(tmp_path / "run", data))
    first = parts.versions.load_blocks(parts.versions.manifest(parts.engine.state.manifest))
    newer = {block: {name: tensor + 1.0 for name, tensor in tensors.items()} for block, tensors in first.items()}
    pure = PureLeases(Shards(parts.layout))
    begun: list[Mapping[BlockId, Any]] = []

    def watched(worker: Any, lease: Any, start: Any, tokens: Any, /) -> Any:
        begun.append(start)
        return pure(worker, lease, start, tokens)

    eager = EagerLeases(cast(PureLeases, watched), workers=4)
    swarm = VirtualSwarm(parts, CREW, pure, seed=0)
    while not parts.engine.state.leases:
        swarm.advance()
    lease = next(iter(parts.engine.state.leases.values())).lease
    tokens = parts.dataset.sequences(lease.data.seed, lease.data.start, lease.data.count, 16).astype("int64")
    own = eager(CREW[0].worker, lease, first, tokens).pseudo_gradient
    eager(CREW[0].worker, lease, newer, tokens)
    eager(CREW[0].worker, lease, newer, tokens)
    other = eager(CREW[1].worker, lease, newer, tokens)
    assert _equal(begun[0], first)
    for block, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(begun[1][block][name], tensor - own.get(block, {}).get(name, torch.zeros(1)) / 4)
    assert not _equal(begun[2], newer)
    assert _equal(begun[3], newer)
    assert other.metrics.inner_steps_done == lease.inner_steps
    parts.close()


def _equal(one: Mapping[BlockId, Any], other: Mapping[BlockId, Any]) -> bool:
    return all(torch.equal(one[block][name], other[block][name]) for block in one for name in one[block])


def test_colluders_of_a_swarm_see_each_others_truth_before_they_lie(tmp_path: Path, data: Path) -> None:
    seen: list[tuple[int, set[str]]] = []

    def flipped(view: Colluders, strength: float, _generator: torch.Generator) -> Any:
        seen.append((view.own.round, {one.lease_id for one in view.group}))
        return {b: {n: -strength * t for n, t in ts.items()} for b, ts in view.own.pseudo_gradient.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "watched", Attack(does="flips", strength=1.0, forge=flipped))
        liar = Adversary.of(attack="watched", strength=None, seed=0, vocab_size=264)
        parts = opened(made(tmp_path / "run", data))
        colluders = {CREW[0].worker: liar, CREW[1].worker: liar}
        VirtualSwarm(parts, CREW, PureLeases(Shards(parts.layout)), seed=0, colluders=colluders).play()
    leases = {lease_id: record.lease for lease_id, record in parts.engine.state.leases.items()}
    assert len(seen) == 2 * ROUNDS
    for number, group in seen:
        kept = [leases[LeaseId(one)] for one in group if one in leases]
        assert all(lease.worker in colluders and lease.round == number for lease in kept)
        assert len(group) == 2
    parts.close()


def liars(data: Path, folder: Path, attack: str, **engine: Any) -> tuple[OpenedRun, Volunteer]:
    """A run of three, the last of whom lies as `attack` says."""
    parts = opened(made(folder, data, **engine))
    liar = as_liar(CREW[2], ATTACKS[attack].conduct)
    adversary = Adversary.of(attack=attack, strength=None, seed=0, vocab_size=264)
    VirtualSwarm(
        parts, [*CREW[:2], liar], PureLeases(Shards(parts.layout)), seed=0, colluders={liar.worker: adversary}
    ).play()
    parts.close()
    return parts, liar


def test_who_is_late_by_intent_uploads_once_the_round_has_closed(tmp_path: Path, data: Path) -> None:
    run, liar = liars(data, tmp_path / "run", "late", heartbeat_interval_s=60.0)
    late = [record for record in run.engine.state.leases.values() if record.lease.worker == liar.worker]
    closed = {record.round: record.closed_at_s for record in run.engine.state.history}
    uploaded = [(record.lease.round, record.uploaded_at_s) for record in late if record.uploaded_at_s is not None]
    assert uploaded
    assert all(at_s >= closed[number] for number, at_s in uploaded if number in closed)


@pytest.mark.parametrize("attack", ["withholds", "never-delivers"])
def test_who_delivers_nothing_is_there_and_counts_for_nothing(tmp_path: Path, data: Path, attack: str) -> None:
    run, liar = liars(data, tmp_path / "run", attack, lease_ttl_s=30.0)
    record = run.engine.state.workers[liar.worker]
    assert record.accepted == 0
    assert record.leases_granted > 0
    assert run.engine.state.version == ROUNDS
    assert all(run.engine.state.workers[one.worker].accepted for one in CREW[:2])


def test_who_skips_half_of_the_steps_claims_all_of_them(tmp_path: Path, data: Path) -> None:
    parts, steps = opened(made(tmp_path / "run", data)), dict[str, set[int]]()
    pure = PureLeases(Shards(parts.layout))

    def watched(worker: Any, lease: Any, start: Any, tokens: Any, /) -> Any:
        steps.setdefault(worker, set()).add(lease.inner_steps)
        return pure(worker, lease, start, tokens)

    liar = Adversary.of(attack="half-steps", strength=None, seed=0, vocab_size=264)
    VirtualSwarm(parts, CREW, watched, seed=0, colluders={CREW[2].worker: liar}).play()
    parts.close()
    assert steps == {CREW[0].worker: {STEPS}, CREW[1].worker: {STEPS}, CREW[2].worker: {STEPS // 2}}
    # who commits to fewer steps than were leased is refused
    assert parts.engine.state.workers[CREW[2].worker].accepted == ROUNDS


def test_a_fast_liar_is_twenty_times_as_fast_and_sybils_have_one_owner(tmp_path: Path, data: Path) -> None:
    run, liar = liars(data, tmp_path / "run", "fast")
    assert liar.step_s == pytest.approx(CREW[2].step_s / 20)
    assert run.engine.state.workers[liar.worker].reports[-1].train_s < 1.0
    run, liar = liars(data, tmp_path / "owned", "sybils")
    assert run.engine.state.workers[liar.worker].person == "owner one of many machines"
    run, liar = liars(data, tmp_path / "trusted", "false-accuser")
    assert run.engine.state.workers[liar.worker].trusted


def test_what_volunteers_are_told_is_told_to_whoever_looks_on(tmp_path: Path, data: Path) -> None:
    parts, told = opened(made(tmp_path / "run", data)), list[bool]()
    training = PureLeases(Shards(parts.layout))
    VirtualSwarm(parts, CREW, training, seed=0, on_verdict=lambda verdict: told.append(verdict.accepted)).play()
    parts.close()
    assert told == [True] * ROUNDS * len(CREW)


def test_who_comes_in_a_later_round_has_no_lease_of_an_earlier_one(tmp_path: Path, data: Path) -> None:
    late = Volunteer(name="late", max_columns=4, from_round=2)
    _, parts = played(made(tmp_path / "run", data), (*CREW, late))
    state = parts.engine.state
    assert [record.accepted for record in (state.workers[one.worker] for one in (*CREW, late))] == [3, 3, 3, 2]
