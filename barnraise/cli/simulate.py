"""The researcher's commands: a swarm in one machine, with the dropouts and attackers that you choose.

Decides how a simulation is asked for and how its end is told; `simulator/` does the rest.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aggregation.names import BASES, PRE_STEPS
from barnraise.cli.options import MOST_SEED, Settings, number, one_of
from barnraise.cli.output import print_json, print_pairs, print_sample
from protocol.codec_names import CODEC_NAMES
from protocol.residency import FROZEN, RESIDENCIES
from protocol.text import human_bytes
from simulator.adversaries.table import ATTACKS

if TYPE_CHECKING:
    from simulator.processes.options import SimulationOptions
    from simulator.processes.report import SimulationReport

REAL = [name for name, row in ATTACKS.items() if not row.conduct.only_virtual]
"""Attacks that real processes can carry out."""

Force = Annotated[
    bool, typer.Option("--force", help="Replace an earlier simulation in that folder, once this one has begun.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")]


def simulate(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.")] = 5,
    dropout: Annotated[
        float,
        typer.Option(
            parser=number(least=0, below=1),
            metavar="SHARE",
            help="Probability that a worker is killed in mid-lease, a round: 0 to below 1.",
        ),
    ] = 0.0,
    byzantine: Annotated[int, typer.Option(min=0, help="How many of the workers lie.")] = 0,
    trusted: Annotated[
        int, typer.Option(min=0, help="How many of the honest ones are founders: full weight at once, and may audit.")
    ] = 0,
    attack: Annotated[
        str,
        typer.Option(
            help=f"What they do: {', '.join(REAL)} (docs/commands.md); byzfl:NAME; or FILE.py:NAME, one of your own."
        ),
    ] = "sign-flip",
    attack_strength: Annotated[
        float | None,
        typer.Option(parser=number(above=0), metavar="NUMBER", help="How hard; each attack has its own default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Everything that is drawn follows from it.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.json, loss.png, health.png, checkpoint and events.jsonl. "
            "By default the next free of barnraise-simulation, barnraise-simulation-2, ..."
        ),
    ] = None,
    force: Force = False,
    lone: Annotated[bool, typer.Option("--lone", help="Also train one honest worker alone, to compare.")] = False,
    undefended: Annotated[bool, typer.Option("--undefended", help="Plain mean, no screening, no clipping.")] = False,
    keep_homes: Annotated[
        bool, typer.Option("--keep-homes", help="Keep the workers' own folders, with the blocks that they downloaded.")
    ] = False,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Show the run's page there meanwhile.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The model, from scratch: tiny (the default), 100m or olmoe-7b.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Train on from this Hugging Face folder, at a quarter of the usual rates.")
    ] = None,
    data: Annotated[str, typer.Option(help="stdlib, a file, a folder, or a prepared dataset.")] = "stdlib",
    residency: Annotated[str, typer.Option(help=f"{one_of(RESIDENCIES)}.")] = FROZEN,
    column_parts: Annotated[
        int, typer.Option(min=1, help="Cut each expert's column into so many, by groups of layers.")
    ] = 1,
    codec: Annotated[str | None, typer.Option(help=f"What submissions are encoded in: {one_of(CODEC_NAMES)}.")] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Expert columns a worker holds at most.")] = None,
    inner_steps: Annotated[int | None, typer.Option(min=1, help="Inner steps a lease; a run's default is 10.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences an inner step; a run's default is 16.")] = None,
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens a sequence.")] = 128,
    rule: Annotated[
        str,
        typer.Option(help=f"{one_of(BASES)}; all but mean also as {one_of(f'{pre}+RULE' for pre in PRE_STEPS)}."),
    ] = "trimmed_mean",
    settings: Settings = None,
    as_json: Json = False,
) -> int:
    """Train one model with real workers over real gRPC, while some vanish and some lie."""
    from coordinator.engine.config import InnerRecipe
    from coordinator.settings import engine_overrides
    from simulator.processes.options import SimulationOptions

    recipe = InnerRecipe()
    options = SimulationOptions(
        out=_folder(out, "barnraise-simulation"),
        workers=workers,
        rounds=rounds,
        dropout=dropout,
        byzantine=byzantine,
        trusted=trusted,
        attack=attack,
        attack_strength=attack_strength,
        seed=seed,
        lone=lone,
        undefended=undefended,
        keep_homes=keep_homes,
        http=http,
        preset=preset,
        checkpoint=checkpoint,
        data=data,
        residency=residency,
        column_parts=column_parts,
        codec=codec,
        columns_per_worker=columns,
        sequence_length=sequence_length,
        rule=rule,
        inner=dataclasses.replace(
            recipe, inner_steps=inner_steps or recipe.inner_steps, batch_sequences=batch or recipe.batch_sequences
        ),
        engine=engine_overrides(settings or ()),
    )
    report = _run(options, as_json=as_json, replace=force)
    if as_json:
        print_json(report.as_dict())
    else:
        _tell(report, options.out)
    return _exit_code(report)


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. By default the next free of barnraise-demo, barnraise-demo-2, ..."),
    ] = None,
    force: Force = False,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Everything that is drawn follows from it.")] = 1,
    undefended: Annotated[
        bool, typer.Option("--undefended", help="Plain mean, no screening: see what the attack does.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Eight workers, a fifth of them dropping out each round, two lying: a few minutes on two cores."""
    from simulator.processes.demo import PROMPT, SAMPLE_TOKENS, demo_options

    out = _folder(out, "barnraise-demo")
    report = _run(demo_options(out, seed=seed, undefended=undefended), as_json=as_json, replace=force)
    if as_json:
        print_json(report.as_dict())
        return _exit_code(report)
    _tell(report, out)
    if report.checkpoint is not None and report.outcome == "finished":
        from moe.sampling import Chance, writer_of_checkpoint

        print(f"\nA sample that the model wrote after {PROMPT!r}:\n")
        written = writer_of_checkpoint(out / report.checkpoint).write(PROMPT, SAMPLE_TOKENS, Chance(seed=seed))
        print_sample(PROMPT + written.text)
    return _exit_code(report)


def _folder(out: Path | None, usual: str) -> Path:
    """Where the results go; of the usual name the next that is free, so that no former result is in the way."""
    if out is not None:
        return out
    from simulator.processes.outfolder import next_free

    chosen = next_free(Path(usual))
    if chosen.name != usual:
        print(f"{usual} is there already and stays as it is: this one goes into {chosen}", file=sys.stderr)
    return chosen


def _run(options: SimulationOptions, *, as_json: bool, replace: bool) -> SimulationReport:
    from rich.console import Console

    from simulator.processes.live import display_for
    from simulator.processes.swarm import run_simulation

    with display_for(Console(), quiet=as_json) as display:
        return run_simulation(options, display, replace=replace)


def _tell(report: SimulationReport, out: Path) -> None:
    """The end, in words and figures."""
    print()
    if report.outcome != "finished":
        print(f"The simulation did not finish: {report.why}\n")
    print_pairs(_summary(report, out))


def _summary(report: SimulationReport, out: Path) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    if report.val_loss_first is not None and report.val_loss_last is not None:
        text = f"{report.val_loss_first:.3f} → {report.val_loss_last:.3f} nats a token"
        pairs.append(("held-out loss", f"{text}, {report.rounds_closed} of {report.rounds_planned} rounds"))
    if report.lone_val_loss is not None:
        pairs.append(("one worker alone", f"{report.lone_val_loss:.3f} with the same number of steps"))
    if report.lone_margin is not None:
        word = "better" if report.lone_margin > 0 else "WORSE"
        pairs.append(("margin", f"the swarm is {abs(report.lone_margin):.3f} nats a token {word}"))
    if report.health is not None:
        pairs.append(("experts", report.health["in_words"]))
    pairs.append(("dropouts", f"{report.dropouts} workers killed in mid-lease, {report.leases_expired} leases expired"))
    if report.byzantine:
        sent = report.byzantine_accepted + report.byzantine_rejected
        text = f"{report.byzantine_rejected} of {sent} {report.attack} submissions rejected"
        pairs.append(("Byzantine", f"{text} ({', '.join(report.byzantine_workers)})"))
    pairs.append(("honest", f"{report.submissions_accepted - report.byzantine_accepted} submissions accepted, "
                            f"{report.honest_rejected} rejected"))  # fmt: skip
    traffic = f"{human_bytes(report.bytes_up)} up, {human_bytes(report.bytes_down)} down"
    pairs.append(("traffic", f"{traffic}, {report.wall_s:.0f} s"))
    if report.coordinator_peak_bytes is not None and report.worker_peak_bytes is not None:
        text = f"coordinator {human_bytes(report.coordinator_peak_bytes)}"
        pairs.append(("peak memory", f"{text}, a worker {human_bytes(report.worker_peak_bytes)} at most"))
    if report.checkpoint is not None:
        pairs.append(("checkpoint", out / report.checkpoint))
    pictures = ["loss.png"] if report.health is None else ["loss.png", "health.png"]
    pairs.append(("report", ", ".join(str(out / name) for name in ("report.json", *pictures))))
    return pairs


def _exit_code(report: SimulationReport) -> int:
    return {"finished": 0, "interrupted": 130}.get(report.outcome, 1)
