"""Who made a round's version worse is found in few passes, and what only a crowd does is not laid on one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch

from coordinator.engine.commands import AggregateRound, FindHarmful
from coordinator.engine.config import AuditConfig
from coordinator.engine.events import HarmfulFound, VersionComparison
from coordinator.run.beginning import check_vouching
from coordinator.run.folder import RunFolder
from coordinator.work import harm
from protocol.errors import ConfigError
from protocol.ids import TRUNK, LeaseId, RoundNumber, Version, column_block, digest_of
from tests.coordinator.engine.conftest import small_config
from tests.coordinator.work_bench import Bench, attempt, contribution

STEP = AggregateRound(
    command_id="aggregate:r1", round=RoundNumber(1), parent_version=Version(0), parent_manifest=digest_of(b"v0"),
    version=Version(1), contributions=(), clips=(), rule="mean", outer_learning_rate=1.0, outer_momentum=0.0, seed=7,
    oldest_needed=Version(0),
)  # fmt: skip
SIXTEEN = tuple(LeaseId(f"r1.{n:02}") for n in range(1, 17))


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


def of(step: AggregateRound, suspects: Sequence[LeaseId], passes: int = 16) -> FindHarmful:
    return FindHarmful(
        command_id="harm:r1", attempt=step, suspects=tuple(suspects), margin=4.0, tolerance=0.005, passes=passes
    )


def found(liars: Collection[LeaseId], *, harms: float = 0.3, passes: int = 16) -> harm.Harmful:
    """A group is worse by the share of liars in it, and an honest one better."""

    def measure(group: harm.LeaseGroup) -> VersionComparison:
        bad = sum(one in liars for one in group) / len(group)
        return VersionComparison(version=Version(0), gain=0.05 - (0.05 + harms) * bad, gain_se=0.004, loss=3.0)

    result = harm.search(of(STEP, SIXTEEN, passes), measure)
    assert result.passes <= passes
    return result


def test_four_liars_of_sixteen_that_are_doubted_first_are_found() -> None:
    result = found(SIXTEEN[:4])
    assert (set(result.harmful), result.suspected) == (set(SIXTEEN[:4]), ())


@pytest.mark.parametrize("places", [(0,), (9,), (3, 12)])
def test_so_are_one_and_two_wherever_they_stand(places: tuple[int, ...]) -> None:
    liars = {SIXTEEN[place] for place in places}
    assert set(found(liars, harms=3.0).harmful) == liars


def test_what_the_passes_do_not_reach_is_suspected_and_not_blamed() -> None:
    result = found(SIXTEEN[:4], passes=4)
    assert result.harmful == ()
    assert set(SIXTEEN[:4]) <= set(result.suspected)


def test_who_harms_within_the_margins_is_suspected_and_not_blamed() -> None:
    result = found(SIXTEEN[:8], harms=0.0145)
    assert (result.harmful, set(result.suspected)) == ((), set(SIXTEEN[:8]))


def test_where_no_group_harms_alone_the_most_doubtful_are_left_out_until_it_helps() -> None:
    liars = set(SIXTEEN[:2])

    def measure(group: harm.LeaseGroup) -> VersionComparison:
        worse = len(group) > 8 and liars & set(group)
        return VersionComparison(version=Version(0), gain=-1.0 if worse else 0.1, gain_se=0.01, loss=3.0)

    result = harm.search(of(STEP, SIXTEEN), measure)
    assert (result.harmful, result.suspected, result.passes) == ((), SIXTEEN[:2], 4)


def test_one_alone_needs_no_search() -> None:
    command = of(STEP, SIXTEEN[:1])
    assert harm.search(command, lambda _: pytest.fail("measured")) == harm.Harmful(SIXTEEN[:1], (), 0)


def test_losses_that_are_no_numbers_compare_all_the_same() -> None:
    fine, broken = torch.ones(3), torch.tensor([1.0, float("inf"), 1.0])
    assert harm.compared(Version(1), fine, broken).gain == -harm.HOPELESS
    assert harm.compared(Version(1), broken, broken).gain == -harm.HOPELESS
    assert harm.compared(Version(1), broken, fine).gain == harm.HOPELESS
    assert harm.compared(Version(1), fine, fine * 3).gain == pytest.approx(-2.0)


def test_really_measured_and_nothing_is_written(bench: Bench) -> None:
    """Noise that is as long as the weights makes any model worse; standing still makes none worse."""

    def noise(_: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))

    still = [bench.submit((0, 1), lambda _, shape: torch.zeros(shape)) for _ in range(3)]
    digests = [bench.submit((0, 1), noise), *still]
    sent = tuple(contribution(n, digest, (0, 1)) for n, digest in enumerate(digests, start=1))
    step = attempt(bench, sent, rule="mean", outer_momentum=0.0)
    kept = set(bench.store.blocks.digests())
    event = bench.executor.execute(of(step, [one.lease_id for one in sent]))
    assert isinstance(event, HarmfulFound)
    assert (event.harmful, event.suspected) == (("r1.1",), ())
    assert set(bench.store.blocks.digests()) == kept
    assert bench.versions.manifest_digest(1) is None


def test_a_block_on_which_a_contribution_is_unheard_stays(bench: Bench) -> None:
    digest = bench.submit((0, 1), lambda _, shape: torch.ones(shape))
    unheard = contribution(1, digest, (0, 1), unheard=(column_block(0),))
    after = bench.blocks_of(bench.aggregate((unheard,)))
    moved = [
        block
        for block, tensors in bench.base.items()
        if any(not torch.equal(after[block][name], tensor) for name, tensor in tensors.items())
    ]
    assert set(moved) == {TRUNK, "column.0", "column.1"} - set(unheard.unheard)


def test_an_open_run_begins_only_with_somebody_to_vouch_for_strangers() -> None:
    open_run = small_config(open_run=True)
    with pytest.raises(ConfigError, match="--accept-unaudited"):
        check_vouching(open_run, founders=0, accept_unaudited=False)
    replayed = replace(open_run, audits=AuditConfig(budget=1.0))
    by_founders = replace(open_run, audits=AuditConfig(budget=1.0, by_coordinator=False))
    check_vouching(replayed, founders=0, accept_unaudited=False)
    with pytest.raises(ConfigError, match=r"audits\.by_coordinator"):
        check_vouching(by_founders, founders=0, accept_unaudited=False)
    check_vouching(by_founders, founders=1, accept_unaudited=False)
    check_vouching(open_run, founders=1, accept_unaudited=False)
    check_vouching(open_run, founders=0, accept_unaudited=True)
    check_vouching(small_config(), founders=0, accept_unaudited=False)


def test_a_short_step_goes_its_share_of_the_way(bench: Bench) -> None:
    digest = bench.submit((0,), lambda _, shape: torch.ones(shape))
    after = bench.blocks_of(bench.aggregate((contribution(1, digest, (0,)),), step_share=0.25))
    for name, tensor in bench.base[TRUNK].items():
        torch.testing.assert_close(after[TRUNK][name], tensor - 0.25)
