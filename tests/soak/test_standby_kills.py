"""Five hundred deaths of a leader, its follower and their witness, and lines cut between them: real processes, and
somebody who keeps book."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.soak.standby_kills import reign_after_reign
from tests.soak.standby_soak import PATIENT, facts_of, row_of, text_in
from tests.soak.test_kills import make_run

KILLS = int(os.environ.get("STANDBY_SOAK_KILLS", "500"))
SEED = int(os.environ.get("STANDBY_SOAK_SEED", "5"))


@pytest.mark.soak
async def test_nothing_that_was_answered_is_lost_with_a_machine(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", text_in(tmp_path), **PATIENT)
    tally, history, unmet = await reign_after_reign(run, tmp_path, seed=SEED, kills=KILLS)
    print("\n" + json.dumps(row_of(tally, history, unmet, SEED) | facts_of(tally, unmet), indent=1))
    assert tally.kills >= KILLS
    assert tally.fenced > 0
    if KILLS >= 500:
        assert not unmet, f"no death at {sorted(unmet)}"
