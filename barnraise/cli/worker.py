"""The volunteer's commands: join a run, and see what this machine would offer.

Decides nothing about training; `worker/` does. Reads join links from the command line or from a shared folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.output import human_bytes, parse_bytes, print_json, print_pairs

app = typer.Typer(no_args_is_help=True, help="Train on this machine, as a volunteer.")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def join(
    link: Annotated[str | None, typer.Argument(help="The join link that the operator sent: barnraise://...")] = None,
    links_from: Annotated[
        Path | None, typer.Option(help="Take the first free link in this folder, waiting for one to appear.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where this machine's identity is kept.")] = None,
    name: Annotated[str, typer.Option(help="What the operator sees; the host name by default.")] = "",
    device: Device = "auto",
    columns: Annotated[int | None, typer.Option(min=1, help="Hold at most this many expert columns.")] = None,
    memory: Annotated[str | None, typer.Option(help="Use at most this much memory, for example 8GB.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to train with.")] = None,
    output: Annotated[str, typer.Option(help="auto, plain, json or quiet.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output json.")] = False,
) -> int:
    """Join a run and train until it is over. Ctrl-C hands the work back and leaves."""
    from protocol.errors import ConfigError

    if (link is None) == (links_from is None):
        raise ConfigError("give either a join link or --links-from FOLDER")
    from barnraise.cli.links import claim_link
    from worker.join import WorkerOptions, run_worker

    chosen = link if link is not None else claim_link(links_from, claimant=name or None)  # type: ignore[arg-type]
    options = WorkerOptions(
        link=chosen,
        home=home,
        name=name,
        device=None if device == "auto" else device,
        max_columns=columns,
        memory_bytes=None if memory is None else parse_bytes(memory),
        threads=threads,
        output="json" if as_json else output,  # type: ignore[arg-type]  # WorkerOptions checks it
    )
    return run_worker(options)


@app.command()
def probe(
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to measure with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What this machine would offer to a run."""
    import dataclasses

    from worker.probe import probe_machine

    machine = probe_machine(None if device == "auto" else device, None, threads)
    if as_json:
        print_json(dataclasses.asdict(machine))
        return
    print_pairs(
        (
            ("device", f"{machine.device}: {machine.device_name}"),
            ("memory offered", human_bytes(machine.memory_bytes)),
            ("matrices in", "bf16" if machine.bf16 else "fp32"),
        )
    )
