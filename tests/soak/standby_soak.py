"""The kill soak of a standby as a command, with its figures as a file of results.

    python -m tests.soak.standby_soak [--kills N] [--seed S] [--json FILE]

Leaves with 1, or an AssertionError, where a promise was broken or a kind of place was not met.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import write_results
from tests.soak.history import Tally
from tests.soak.standby_book import StandbyTally
from tests.soak.standby_dooms import all_standby_dooms
from tests.soak.standby_kills import reign_after_reign
from tests.soak.test_kills import make_run

TEXTS = ("ast.py", "calendar.py", "codecs.py", "csv.py", "dis.py", "enum.py", "inspect.py", "locale.py")
PATIENT = {"heartbeat_misses": 8.0}
"""On a machine that does other things nobody is silent for one second's sake."""
COLUMNS = (
    {"heading": "kills", "shows": "{kills:,}", "goal": "500"},
    {"heading": "of the leader, at a place / at any moment", "shows": "{leader_at_place} / {leader_outside}"},
    {"heading": "of the follower", "shows": "{follower_at_place} / {follower_outside}"},
    {"heading": "of the witness", "shows": "{witness_at_place} / {witness_outside}"},
    {"heading": "kinds of place", "shows": "{places_met} of {places}", "goal": "all"},
    {"heading": "lines cut, some of them with a death meanwhile", "shows": "{cuts}"},
    {"heading": "successions in `sync` / in `async`", "shows": "{successions_sync} / {successions_async}"},
    {"heading": "former leaders that came back and were fenced", "shows": "{fenced}"},
    {"heading": "answers (announcements, commits, submissions)", "shows": "{answers:,}"},
    {"heading": "of them lost in `sync`", "shows": "{lost_sync}", "goal": "0"},
    {"heading": "answered by a second leader, or while cut off in `sync`", "shows": "{split_brains}", "goal": "0"},
    {"heading": "cut off or led over, and silent, s", "shows": "{silent_s:.0f}"},
    {"heading": "outer steps, and of them repeated", "shows": "{outer_steps:,}, {steps_repeated}", "goal": "0"},
    {
        "heading": "records lost in `async`, of as many as `status` showed",
        "shows": "{records_lost_async} of {records_allowed_async}",
        "goal": "no more",
    },
    {"heading": "minutes", "shows": "{minutes:.0f}"},
)


def text_in(place: Path) -> Path:
    """A folder of texts to train on."""
    folder = place / "text"
    folder.mkdir()
    for name in TEXTS:
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, folder / name)
    return folder


def row_of(tally: StandbyTally, history: Tally, unmet: set[str], seed: int) -> dict[str, Any]:
    """What became of it, in figures. Whatever is 0 here has been asserted to be."""
    row: dict[str, Any] = {"label": f"seed {seed}", "kills": tally.kills}
    for who in ("leader", "follower", "witness"):
        row[f"{who}_at_place"] = sum(count for place, count in tally.at_place.items() if place.startswith(who))
        row[f"{who}_outside"] = tally.from_outside[who]
    places = sum(len(dooms) for dooms in all_standby_dooms().values())
    versions = history.versions
    return row | {
        "places": places,
        "places_met": places - len(unmet),
        "cuts": tally.cuts.total(),
        "successions_sync": sum(n for how, n in tally.successions.items() if how.startswith("sync")),
        "successions_async": sum(n for how, n in tally.successions.items() if how.startswith("async")),
        "fenced": tally.fenced,
        "answers": tally.answered.total(),
        "lost_sync": tally.answers_lost_sync,
        "split_brains": tally.split_brains,
        "silent_s": round(tally.silent_s, 1),
        "outer_steps": len(versions) - 1,
        "steps_repeated": len(versions) - len(set(versions)),
        "records_lost_async": tally.records_lost_async,
        "records_allowed_async": tally.records_allowed_async,
        "answers_lost_async": tally.answers_lost_async,
        "minutes": round(tally.wall_s / 60, 1),
    }


def facts_of(tally: StandbyTally, unmet: set[str]) -> dict[str, Any]:
    """By kind."""
    return {
        "kills_at_place": dict(sorted(tally.at_place.items())),
        "places_not_met": sorted(unmet),
        "cut": dict(sorted(tally.cuts.items())),
        "successions": dict(sorted(tally.successions.items())),
        "answered": dict(sorted(tally.answered.items())),
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="at least so many (default 500)")
    parser.add_argument("--seed", type=int, default=5, help="decides who is killed, where, and what is cut")
    parser.add_argument("--most-s", type=float, default=math.inf, help="end after so long, with as many as there were")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the figures to FILE, too")
    parser.add_argument(
        "--place", type=Path, default=None, help="a folder for everything (default: a new one, deleted)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="standby-soak-") as scratch:
        place = options.place or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        run = make_run(place / "run", text_in(place), **PATIENT)
        outcome = reign_after_reign(run, place, seed=options.seed, kills=options.kills, most_s=options.most_s, told=say)
        tally, history, unmet = asyncio.run(outcome)
    row = row_of(tally, history, unmet, options.seed)
    for name, value in (row | facts_of(tally, unmet)).items():
        say(f"{name}: {value}")
    if options.json is not None:
        command = f"python -m tests.soak.standby_soak --kills {options.kills} --seed {options.seed}"
        write_results(
            options.json, [row], command=command, columns=COLUMNS, transposed=True, **facts_of(tally, unmet)
        )  # fmt: skip
    return int(bool(unmet))


def say(text: str) -> None:
    """At once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
