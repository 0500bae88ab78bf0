"""Two thousand kills in one run that trains: nothing acknowledged is lost, no outer step is repeated, 1 % of loss."""

from __future__ import annotations

import pytest

from benchmarks.kills import KILLS, ROUNDS, is_borne_out, row, run


@pytest.mark.soak
def test_two_thousand_kills_cost_less_than_a_hundredth_of_the_loss() -> None:
    quiet, killed = run(0, ROUNDS, 0), run(0, ROUNDS, KILLS)
    told = row(0, ROUNDS, quiet, killed, 0.0)
    print(told)
    assert is_borne_out(told, KILLS, ROUNDS), told
    assert killed.interrupted["nothing"] < KILLS / 2
    # sixty kills are too few to be sure of the rarer places
    assert {"a commit", "a measurement", "training (worker)", "uploading (worker)"} <= killed.interrupted.keys()
    assert killed.fates.total() == killed.outcome.acknowledged
