"""What the trust region of the outer step withholds: of honest runs at many learning rates, and of runs with liars.

    python -m benchmarks.region [--rows 'NAME;...'] [--seeds 1,2] [--json FILE]

In-process swarms of the real engine, executor and trainer (simulator/virtual) on the `tiny` model and this project's
own sources. `versions` were compared, `withheld` not published, `worst` is the largest rise of held-out loss over the
parent among honest comparisons, in percent of the loss and in standard errors; `over` is the final loss over the same
run's with the liars absent, in percent; `blamed_honest` counts verdicts against honest workers by the search.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from benchmarks.report import print_rows, write_json
from coordinator.engine.events import Event, RoundAggregated

if TYPE_CHECKING:
    import torch

    from protocol.submission import Blocks
    from simulator.adversaries.attack import Colluders

SEQUENCE_LENGTH = 32
SEEDS = (1, 2)
_SPOILT_TOKENS = (32, 101, 116)
"""The commonest bytes of English text, and of sources: a space, `e` and `t`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionCase:
    """One row."""

    name: str
    workers: int = 4
    liars: int = 0
    trusted: int = 0
    attack: str = "sign-flip"
    strength: float | None = None
    rounds: int = 16
    region: bool = True
    screening: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


_LENIENT = {"min_heldout_gain_share": 0.0, "gain_error_margin": 1e6, "max_norm_factor": 100.0}
"""Screening that lets everything pass which is finite: what the trust region has to hold alone."""


def _cases() -> list[RegionCase]:
    rates = (0.001, 0.004, 0.016, 0.064, 0.256)
    honest = [
        RegionCase(name=f"honest, rate {rate}, {schedule}", inner={"learning_rate": rate, "schedule": schedule})
        for rate in rates
        for schedule in ("cosine", "constant")
    ]
    honest.append(RegionCase(name="honest, alone, rate 0.064", workers=1, inner={"learning_rate": 0.064}))
    liars = []
    for attack, strength in (("sign-flip", 2.0), ("spoilt-rows", 2.5), ("shrink", -0.3)):
        for region in (True, False):
            state = "on" if region else "off"
            liars += [
                RegionCase(name=f"{n} with {f} of {attack}, region {state}", workers=n, liars=f, trusted=n == 3,
                           attack=attack, strength=strength, region=region)
                for n, f in ((3, 2), (8, 2), (8, 4))
            ]  # fmt: skip
            liars.append(
                RegionCase(name=f"8 with 4 of {attack}, unscreened, region {state}", workers=8, liars=4, attack=attack,
                           strength=strength, region=region, screening=_LENIENT)
            )  # fmt: skip
    return [*honest, *liars]


CASES = {case.name: case for case in _cases()}


def _spoilt_rows(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """Honest work, but for three rows of the embedding that go off by `strength` times the trunk's length."""
    import torch

    from protocol.ids import TRUNK

    forged = {block: {name: tensor.clone() for name, tensor in own.items()} for block, own in _own(view).items()}
    trunk = forged[TRUNK]
    length = torch.sqrt(sum((tensor.float() ** 2).sum() for tensor in trunk.values()))  # type: ignore[arg-type]
    name = next(name for name in trunk if "embed" in name)
    rows = torch.randn(len(_SPOILT_TOKENS), trunk[name].shape[1], generator=generator)
    trunk[name][list(_SPOILT_TOKENS)] = rows * (strength * length / torch.linalg.vector_norm(rows))
    return forged


def _shrunk(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
    """A share `strength` of what it learnt: below zero a gentle step back."""
    return {block: {name: tensor * strength for name, tensor in own.items()} for block, own in _own(view).items()}


def _own(view: Colluders) -> Blocks:
    return view.own.pseudo_gradient


def run_case(case: RegionCase, seed: int, data: Path, *, without_liars: bool = False) -> dict[str, Any]:
    """Train one row; its final loss and what was withheld."""
    import torch

    from coordinator.run.folder import init_run
    from coordinator.run.opened import OpenedRun
    from simulator.adversaries.adversary import Adversary
    from simulator.adversaries.attack import Attack
    from simulator.adversaries.table import ATTACKS
    from simulator.virtual.inner import PureLeases, Shards
    from simulator.virtual.swarm import STILL, VirtualSwarm
    from simulator.virtual.volunteer import Volunteer

    class Watched(VirtualSwarm):
        """Keeps what was compared."""

        def handle(self, event: Event) -> Any:
            if isinstance(event, RoundAggregated):
                seen.append(event)
            return super().handle(event)

    torch.set_num_threads(1)
    ATTACKS.setdefault("spoilt-rows", Attack(does="spoils three rows", strength=2.5, forge=_spoilt_rows))
    ATTACKS.setdefault("shrink", Attack(does="steps back a little", strength=-0.3, forge=_shrunk))
    seen: list[RoundAggregated] = []
    honest = case.workers - case.liars
    crew = [Volunteer(name=str(n), trusted=n < case.trusted) for n in range(honest if without_liars else case.workers)]
    lie = Adversary.of(attack=case.attack, strength=case.strength, seed=seed, vocab_size=256)
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="barnraise-region-") as folder:
        run = OpenedRun.open(init_run(Path(folder) / "run", _settings(case, seed, data, len(crew))), STILL)
        swarm = Watched(
            run, crew, PureLeases(Shards(run.layout)), seed=seed,
            colluders={one.worker: lie for one in crew[honest:]},
        )  # fmt: skip
        swarm.play()
        state = run.engine.state
        honest_workers = {one.worker for one in crew[:honest]}
        blamed = sum(
            one.why.case == "harms_alone" and one.worker in honest_workers
            for row in state.history
            for one in row.left_out
        )
        losses = [one.val_loss for one in state.validations]
        run.close()
    ups = [one.compared[0] for one in seen if one.compared]
    return {
        "val_loss": losses[-1],
        "best_loss": min(losses),
        "versions": len(ups),
        "withheld": sum(len(row.withheld) for row in state.history),
        "published": int(state.version),
        "worst_percent": max((-100 * one.gain / one.loss for one in ups if one.loss), default=0.0),
        "worst_errors": max((-one.gain / max(one.gain_se, 1e-12) for one in ups), default=0.0),
        "blamed_honest": blamed,
        "refused": ", ".join(f"{count} {key}" for key, count in sorted(state.totals.submissions_rejected.items())),
        "wall_s": time.perf_counter() - started_s,
    }


def _settings(case: RegionCase, seed: int, data: Path, crew: int) -> Any:
    from coordinator.settings import RunSettings

    return RunSettings(
        preset="tiny",
        data=str(data),
        sequence_length=SEQUENCE_LENGTH,
        seed=seed,
        heldout_limit=64,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": case.rounds,
            "min_workers": crew,
            "gather_s": 0.0,
            "heartbeat_interval_s": 5.0,
            "checkpoint_every": 0,
            "region": {"enabled": case.region},
            "screening": dict(case.screening),
            "inner": {"inner_steps": 8, "batch_sequences": 4, **case.inner},
            **case.engine,
        },
    )


def main() -> None:
    """See the module."""
    from coordinator.datasets import prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="names of rows, by `;`; all where left out")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    chosen = [name for name in CASES if not args.rows or any(part in name for part in args.rows.split(";"))]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="barnraise-region-data-") as folder:
        sources = sorted(str(path) for path in Path(__file__).parents[1].joinpath("coordinator").rglob("*.py"))
        prepare(sources, Path(folder) / "prepared")
        absent: dict[tuple[object, ...], float] = {}
        for name in chosen:
            for seed in map(int, args.seeds.split(",")):
                case, data = CASES[name], Path(folder) / "prepared"
                row = {"row": name, "seed": seed, **run_case(case, seed, data)}
                if case.liars:
                    key = (case.workers - case.liars, case.trusted, str(case.screening), seed)
                    if key not in absent:
                        absent[key] = run_case(case, seed, data, without_liars=True)["val_loss"]
                    row["over"] = 100 * (row["val_loss"] / absent[key] - 1)
                rows.append(row)
                print(row, flush=True)
                if args.json is not None:
                    write_json(args.json, rows)
    print_rows(rows)


if __name__ == "__main__":
    main()
