"""A simulated run that really trains, killed over and over: it repeats exactly, loses nothing, and learns as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from simulator.deterministic.kills import KillOutcome, run_with_kills
from simulator.deterministic.planted import PLANTED
from worker.train import trainer

MOST_DIFFERENCE = 0.03
"""After six rounds, a third of the way down; `make soak` asks for 1 % of a whole run."""


def run(tmp_path: Path, *, kills: int, rounds: int, seed: int = 0) -> KillOutcome:
    tmp_path.mkdir(exist_ok=True)
    return run_with_kills(seed, rounds=rounds, kills=kills, folder=tmp_path)


def test_sixty_kills_lose_nothing_repeat_nothing_and_cost_little(tmp_path: Path) -> None:
    quiet = run(tmp_path / "quiet", kills=0, rounds=6)
    killed = run(tmp_path / "killed", kills=60, rounds=6)
    assert (quiet.outcome.violation, killed.outcome.violation) == (None, None)
    assert (quiet.kills, killed.kills, quiet.outcome.versions, killed.outcome.versions) == (0, 60, 6, 6)
    assert killed.fates["open"] == 0
    assert killed.fates.total() == killed.outcome.acknowledged >= quiet.outcome.acknowledged
    assert killed.outcome.coordinator_kills > 10 < killed.outcome.worker_kills
    assert killed.interrupted["nothing"] < 30
    assert {"a commit", "training (worker)", "fetching (worker)"} <= killed.interrupted.keys()
    assert quiet.val_losses[6] < quiet.val_losses[0] - 0.5
    assert killed.val_losses[6] == pytest.approx(quiet.val_losses[6], rel=MOST_DIFFERENCE)


def test_a_killed_run_repeats_to_the_last_bit(tmp_path: Path) -> None:
    first, again = (run(tmp_path / name, kills=20, rounds=2) for name in ("first", "again"))
    assert first == again
    assert first.kills == 20
    assert first != run(tmp_path / "other", kills=20, rounds=2, seed=1)


@contextlib.contextmanager
def moments_forgotten() -> Iterator[None]:
    """A worker that goes on with its weights, but with fresh optimizer moments."""
    take_up = trainer._InnerLoop.take_up

    def without_moments(loop: Any, state: Any) -> int:
        done = take_up(loop, state)
        for parameter in loop._optimizer.parameters:
            loop._optimizer.state_of(parameter).clear()
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._InnerLoop, "take_up", without_moments)
        yield


def planted(name: str) -> AbstractContextManager[None]:
    return next(bug for bug in PLANTED if bug.name == name).plant()


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        (lambda: planted("reply-before-commit"), "acted on and are not in the journal"),
        (lambda: planted("payload-without-sync"), "not on disk"),
        (moments_forgotten, "taken up again and gave other bytes than in one go"),
    ],
)
def test_what_is_broken_is_found(tmp_path: Path, bug: Any, told: str) -> None:
    with bug():
        violation = run(tmp_path, kills=200, rounds=8).outcome.violation
    assert violation is not None
    assert told in violation
