"""Ten minutes of deaths of a leader, its follower and their witness: real processes, and somebody who keeps book."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.soak.standby_kills import reign_after_reign
from tests.soak.test_kills import make_run

SECONDS = float(os.environ.get("STANDBY_SOAK_S", "600"))


@pytest.mark.soak
async def test_nothing_that_was_answered_is_lost_with_a_machine(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for name in ("ast.py", "calendar.py", "codecs.py", "csv.py", "dis.py", "enum.py", "inspect.py", "locale.py"):
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, text / name)
    tally = await reign_after_reign(make_run(tmp_path / "run", text), tmp_path, seed=5, seconds=SECONDS)
    print(
        f"\nstandby: {tally.kills.total()} kills in {tally.wall_s:.0f} s and {tally.reigns} promotions; "
        f"{tally.acknowledged} answers; in sync 0 lost, in async {tally.lost_in_async} where {tally.allowed_in_async} "
        f"might be; {tally.fenced} former leaders came back and were fenced\n{dict(sorted(tally.kills.items()))}"
    )
    assert tally.reigns > 0
