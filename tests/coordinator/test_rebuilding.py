"""A version made again without somebody is what would have been without them, blocks and momenta, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from coordinator.engine.commands import AggregateRound, Contribution, RebuildVersion
from coordinator.engine.events import RoundAggregated, VersionRebuilt
from coordinator.run.folder import RunFolder
from protocol.errors import LocalError
from protocol.ids import Digest, RoundNumber, Version
from tests.coordinator.work_bench import Bench, constant, contribution

MOMENTUM: dict[str, Any] = {"outer_momentum": 0.5, "outer_learning_rate": 0.1}


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


def step(bench: Bench, number: int, parent: Digest, sent: tuple[Contribution, ...]) -> AggregateRound:
    return AggregateRound(
        command_id=f"aggregate:r{number}", round=RoundNumber(number), parent_version=Version(number - 1),
        parent_manifest=parent, version=Version(number), contributions=sent, clips=(), rule="mean", seed=number,
        oldest_needed=Version(0), **MOMENTUM,
    )  # fmt: skip


def history(bench: Bench, *rounds: tuple[Contribution, ...]) -> list[tuple[AggregateRound, Digest]]:
    """Rounds one after the other, each with the manifest that came of it."""
    parent, made = bench.base_manifest, []
    for number, sent in enumerate(rounds, start=1):
        command = step(bench, number, parent, sent)
        event = bench.executor.execute(command)
        assert isinstance(event, RoundAggregated)
        parent = event.manifest
        made.append((command, parent))
    return made


def rebuilt(bench: Bench, *steps: AggregateRound, present: Digest, version: int, start: Digest) -> VersionRebuilt:
    command = RebuildVersion(
        command_id="rebuild:r9", round=RoundNumber(9), version=Version(version), parent_version=Version(version - 1),
        parent_manifest=present, from_version=Version(0), from_manifest=start, steps=steps,
    )  # fmt: skip
    event = bench.executor.execute(command)
    assert isinstance(event, VersionRebuilt)
    return event


def honest_and_liar(bench: Bench) -> tuple[tuple[Contribution, ...], tuple[Contribution, ...], Contribution]:
    a = tuple(contribution(n, bench.submit((0, 1), constant(0.1 * n)), (0, 1)) for n in (1, 2))
    b = tuple(contribution(n, bench.submit((0,), constant(0.2 * n)), (0,)) for n in (1, 2))
    return a, b, contribution(3, bench.submit((0, 1, 2), constant(7.0)), (0, 1, 2))


def test_it_is_the_model_that_would_have_been_without_the_liar(bench: Bench) -> None:
    a, b, liar = honest_and_liar(bench)
    clean = history(bench, a, b, a)[-1][1]
    wanted = bench.versions.manifest(clean)
    lied = history(bench, (*a, liar), b, (*a, liar))
    steps = [step(bench, n, bench.base_manifest, sent) for n, sent in enumerate((a, b, a), start=1)]
    event = rebuilt(bench, *steps, present=lied[-1][1], version=4, start=bench.base_manifest)
    found = bench.versions.manifest(event.manifest)
    assert (found.blocks, found.momenta) == (wanted.blocks, wanted.momenta)
    assert (found.version, found.parent_version, found.tokens_trained) == (4, 3, wanted.tokens_trained)
    one, other = (bench.versions.load_blocks(bench.versions.manifest(which)) for which in (lied[-1][1], event.manifest))
    squares = [float(((t - other[b][n]) ** 2).sum()) for b, ts in one.items() for n, t in ts.items()]
    assert event.change_l2 == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_it_starts_in_the_middle_with_the_momentum_of_then(bench: Bench) -> None:
    a, b, liar = honest_and_liar(bench)
    wanted = bench.versions.manifest(history(bench, a, b, a)[-1][1])
    lied = history(bench, a, (*b, liar), a)
    steps = [step(bench, n, bench.base_manifest, sent) for n, sent in ((2, b), (3, a))]
    event = rebuilt(bench, *steps, present=lied[-1][1], version=4, start=lied[0][1])
    found = bench.versions.manifest(event.manifest)
    assert (found.blocks, found.momenta) == (wanted.blocks, wanted.momenta)


def test_without_any_step_it_is_the_version_of_before(bench: Bench) -> None:
    _, _, liar = honest_and_liar(bench)
    lied = history(bench, (liar,))
    event = rebuilt(bench, present=lied[-1][1], version=2, start=bench.base_manifest)
    found, base = bench.versions.manifest(event.manifest), bench.versions.manifest(bench.base_manifest)
    assert (found.blocks, found.momenta, found.version) == (base.blocks, base.momenta, 2)


def test_again_after_a_restart_it_is_what_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, liar = honest_and_liar(bench)
    present = history(bench, (*a, liar))[-1][1]
    again = step(bench, 1, bench.base_manifest, a)
    first = rebuilt(bench, again, present=present, version=2, start=bench.base_manifest)
    monkeypatch.setattr("coordinator.work.outer.aggregate_block", None)  # would fail if it were computed anew
    second = rebuilt(Bench(bench.run), again, present=present, version=2, start=bench.base_manifest)
    assert (second.manifest, second.change_l2) == (first.manifest, first.change_l2)


def test_a_submission_that_is_gone_ends_in_an_error(bench: Bench) -> None:
    a, _, liar = honest_and_liar(bench)
    present = history(bench, (*a, liar))[-1][1]
    gone = contribution(4, Digest("0" * 64), (0,))
    with pytest.raises(LocalError):
        rebuilt(
            bench,
            step(bench, 1, bench.base_manifest, (gone,)),
            present=present,
            version=2,
            start=bench.base_manifest,
        )
