"""What it costs a run when somebody new has themselves banned in every round, and rollbacks follow.

    python -m benchmarks.sybils [--quick] [--json FILE]

The micro model of `benchmarks.byzantine`, its real engine, executor and trainer in virtual time: twelve honest workers
of whom one is a founder, so that two audit. In each round one more enrols; it is honest for `HONEST_ROUNDS` rounds,
whose steps it then has taken back by lying in the next: it sends half of what it learnt twice over, which an audit
finds and screening does not, and is banned. Rows: `rollback_rounds` (how far back a rollback goes, and how seldom there
is one), beside the same run without Sybils and the same with no rollback at all. `progress` is how far held-out loss
came down, over the same of the run without; `time` is virtual time over that run's: both at equal rounds.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.byzantine_rows import NOBODY, ByzantineCase
from benchmarks.byzantine_run import KEPT_ROUNDS, Remembered, micro_checkpoint, prepared, settings_of
from benchmarks.report import Cell, machine, parse_args, print_rows, write_results

if TYPE_CHECKING:
    from coordinator.run.opened import OpenedRun
    from simulator.adversaries.adversary import Adversary
    from simulator.virtual.volunteer import Volunteer

HONEST, HONEST_ROUNDS, ROUNDS = 12, 2, 40
WINDOWS: Final = (0, 4, 8)
"""Values of `rollback_rounds`; 0 is none."""
LIE: Final = "half-steps"
COLUMNS: Final = (
    {"heading": "who", "shows": "{who}"},
    {"heading": "`rollback_rounds`", "shows": "{window}"},
    {"heading": "seeds", "shows": "{seeds}"},
    {"heading": "Sybils banned", "shows": "{banned:g} of {sybils:g}"},
    {"heading": "honest banned", "shows": "{honest_banned:g}"},
    {"heading": "rollbacks", "shows": "{rollbacks:g}"},
    {"heading": "held-out loss", "shows": "{val_loss:.3f}"},
    {"heading": "progress", "shows": "{progress:.1%}"},
    {"heading": "virtual time", "shows": "× {time:.2f}"},
)


def played(window: int, sybils: int, rounds: int, seed: int, folder: Path) -> dict[str, Any]:
    """One run; its figures."""
    from coordinator.run.folder import init_run
    from coordinator.run.opened import OpenedRun
    from simulator.seeds import derived_seed
    from simulator.virtual.inner import PureLeases, Shards
    from simulator.virtual.swarm import STILL, VirtualSwarm

    case = ByzantineCase(attack=NOBODY, defence="pipeline", n=HONEST, f=0, trusted=1, seed=seed)
    data, checkpoint = str(folder / "data"), micro_checkpoint(folder, seed)
    settings = settings_of(case, rounds, derived_seed(seed, "sybils"), data, checkpoint)
    engine = {**settings.engine, "rollback_rounds": window, "validate_every": 1}
    settings = settings.model_copy(update={"engine": engine})
    with tempfile.TemporaryDirectory(prefix="barnraise-sybils-") as scratch:
        opened = OpenedRun.open(init_run(Path(scratch) / "run", settings), STILL)
        try:
            honest, liars = crew(sybils, seed, opened)
            training = Remembered(PureLeases(Shards(opened.layout)), KEPT_ROUNDS * (HONEST + HONEST_ROUNDS + 1))
            everybody = [*honest, *(volunteer for volunteer, _ in liars)]
            colluders = {volunteer.worker: adversary for volunteer, adversary in liars}
            VirtualSwarm(opened, everybody, training, seed=seed, colluders=colluders).play()
            return figures(opened, frozenset(colluders))
        finally:
            opened.close()


def crew(
    sybils: int, seed: int, opened: OpenedRun
) -> tuple[Sequence[Volunteer], Sequence[tuple[Volunteer, Adversary]]]:
    """The honest; and who comes in each round to be banned, with what it does."""
    from simulator.adversaries.adversary import Adversary
    from simulator.seeds import derived_seed
    from simulator.virtual.volunteer import Volunteer

    honest = [Volunteer(name=str(number), trusted=number == 0) for number in range(HONEST)]
    liars = []
    for number in range(1, sybils + 1):
        seeded = derived_seed(seed, "sybil", number)
        one = Adversary.of(attack=LIE, strength=None, seed=seeded, vocab_size=opened.dataset.vocab_size)
        conduct = dataclasses.replace(one.attack.conduct, first_round=number + HONEST_ROUNDS)
        one = dataclasses.replace(one, attack=dataclasses.replace(one.attack, conduct=conduct))
        liars.append((Volunteer(name=f"sybil {number}", from_round=number), one))
    return honest, liars


def figures(opened: OpenedRun, sybils: frozenset[Any]) -> dict[str, Any]:
    """What became of a run."""
    state = opened.engine.state
    banned = [record.worker for record in state.workers.values() if record.ban is not None]
    return {
        "sybils": len(sybils & set(state.workers)),
        "banned": sum(worker in sybils for worker in banned),
        "honest_banned": sum(worker not in sybils for worker in banned),
        "rollbacks": sum(row.version is not None for row in state.rollbacks),
        "first_loss": state.validations[0].val_loss,
        "val_loss": state.validations[-1].val_loss,
        "virtual_s": state.now_s,
    }


def row_of(who: str, window: int, runs: Sequence[dict[str, Any]], without: Sequence[dict[str, Any]]) -> dict[str, Cell]:
    """Means over seeds, each beside the run of its seed without Sybils."""
    count = len(runs)
    names = ("sybils", "banned", "honest_banned", "rollbacks", "val_loss")
    came = [
        (one["first_loss"] - one["val_loss"]) / (other["first_loss"] - other["val_loss"])
        for one, other in zip(runs, without, strict=True)
    ]
    times = [one["virtual_s"] / other["virtual_s"] for one, other in zip(runs, without, strict=True)]
    return {
        "who": who,
        "window": window,
        "seeds": count,
        **{name: sum(one[name] for one in runs) / count for name in names},
        "progress": sum(came) / count,
        "time": sum(times) / count,
    }


def main() -> None:
    """Play and print."""
    import structlog
    import torch

    args = parse_args(__doc__ or "")
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rounds, seeds, windows = (10, 1, (0, 4)) if args.quick else (ROUNDS, 2, WINDOWS)
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="barnraise-sybils-data-") as kept:
        folder = Path(kept)
        prepared(folder)
        without = [played(0, 0, rounds, seed, folder) for seed in range(seeds)]
        rows.append(row_of("nobody lies", 0, without, without))
        print_rows(rows)
        for window in windows:
            started_s = time.process_time()
            runs = [played(window, rounds - HONEST_ROUNDS - 1, rounds, seed, folder) for seed in range(seeds)]
            rows.append(row_of("one Sybil a round", window, runs, without))
            print_rows([{**rows[-1], "cpu_s": time.process_time() - started_s}])
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_results(args.json, rows, command="python -m benchmarks.sybils", columns=COLUMNS, rounds=rounds)


if __name__ == "__main__":
    main()
