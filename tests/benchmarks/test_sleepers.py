"""Sleepers in the stubbed swarm: found by two auditors and banned, by one and without weight; nobody else is."""

from __future__ import annotations

from pathlib import Path

from benchmarks.replays import row_of
from benchmarks.sleepers import Watched, lie_row, watch, watch_real
from benchmarks.sleepers_real import RealSwarm
from benchmarks.stubbed_swarm import SLEPT, StubbedSwarm

DISTANCES = {"honest": (0.0, 8e-7, 0.002), "lie": (0.1, 0.5), "small lie": (0.01,)}


def played(lie: str = "lie", founders: int = 1, share: float = 1.0) -> list[Watched]:
    rounds = SLEPT + 15
    return watch(
        StubbedSwarm(
            seed=1, rounds=rounds, workers=12, sleepers=4, lie=lie, founders=founders, share=share, distances=DISTANCES
        )
    )


def test_two_auditors_ban_sleepers_and_nobody_else() -> None:
    workers = played()
    assert any(one.banned > SLEPT for one in workers if one.sleeper)
    assert all(one.banned for one in workers if one.found)
    assert not any(one.banned or one.refused for one in workers if not one.sleeper)


def test_whom_one_auditor_contradicted_another_hears_though_it_is_never_idle() -> None:
    """This swarm's founder ended its own leases last in each round, and was asked for nothing for forty rounds."""
    swarm = StubbedSwarm(seed=11, rounds=40, sleepers=4, lie="lie", distances={"honest": (0.0,), "lie": (0.5,)})
    sleepers = [one for one in watch(swarm) if one.sleeper]
    assert any(one.found for one in sleepers)
    assert all(one.banned for one in sleepers if 0 < one.found < 37)


def test_what_the_coordinator_alone_contradicts_weighs_nothing_from_then_on() -> None:
    """Not even what it computes as it should, in between."""
    sleepers = [one for one in played(founders=0, share=0.5) if one.sleeper]
    assert any(one.found for one in sleepers)
    assert not any(one.banned or one.weighed_after for one in sleepers)


def test_a_lie_within_the_tolerance_is_not_found() -> None:
    workers = played("small lie")
    assert any(one.audited for one in workers if one.sleeper)
    assert not any(one.found or one.banned for one in workers)


def test_a_row_holds_what_was_found_against_what_was_audited() -> None:
    def one(sleeper: bool, audited: int, found: int) -> Watched:
        banned = found and found + 2
        return Watched(
            sleeper=sleeper,
            trusted=False,
            done=60,
            audited=audited,
            found=found,
            banned=banned,
            weighed_after=0,
            granted=70,
            refused={},
        )

    row = lie_row(0.5, [one(True, 1, 20), one(True, 1, 0), one(False, 1, 0), one(False, 3, 0)])
    assert (row["found"], row["expected"], row["p"], row["half"]) == (0.5, (0.5 + 0.875) / 2, 4 / 120, 12)


def test_a_kinds_distances_are_summed_up_against_the_default_tolerance() -> None:
    row = row_of("honest", [0.0, 0.01, 0.03, 0.04])
    assert (row["largest"], row["above"], row["leases"]) == (0.04, 0.5, 4)


def test_a_liar_of_a_run_with_real_training_is_found_and_nobody_else(tmp_path: Path, corpus: Path) -> None:
    from coordinator.datasets import prepare

    prepare([str(corpus)], tmp_path / "data")
    workers = watch_real(RealSwarm(seed=0, attack="half-steps", rounds=3, folder=tmp_path, workers=4, sleepers=1))
    assert len(workers) == 4
    (liar,) = (one for one in workers if one.sleeper)
    assert (liar.found, liar.banned > 0, liar.weighed_after) == (1, True, 0)
    assert [one.sleeper for one in workers if one.trusted] == [False]
    assert all(not one.found and not one.banned for one in workers if not one.sleeper)
