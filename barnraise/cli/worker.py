"""The volunteer's commands: join a run, and see what this machine would offer.

Decides nothing about training; `worker/` does. Reads join links from the command line, a file, standard input or a
shared folder.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli import rules, volunteer
from barnraise.cli import view as screen
from barnraise.cli.options import Json
from barnraise.cli.output import print_json, print_pairs
from protocol.amounts import parse_bytes
from protocol.text import human_bytes

app = typer.Typer(no_args_is_help=True, help="Train on this machine, as a volunteer.")

app.command("set", context_settings={"ignore_unknown_options": True})(rules.set_)  # a value may begin with a -
app.command("rules")(rules.rules)
app.command("view")(screen.view)
for _verb in (volunteer.status, volunteer.pause, volunteer.resume, volunteer.finish, volunteer.leave, volunteer.logs):
    app.command(_verb.__name__)(_verb)

Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda or cuda:N; cuda:N,cuda:M where the second card keeps what the first has no room for."
    ),
]


Gpus = Annotated[
    str,
    typer.Option(
        "--gpus",
        help="A worker for each of these GPUs, as 0,1 or all: they share your rules, need one join link, and count as"
        " one owner's in the run. It needs columns enough for all: two of them never hold the same.",
    ),
]


@app.command()
def join(
    link: Annotated[
        str | None,
        typer.Argument(
            help="The join link that the operator sent: barnraise://... Other users of this machine can see arguments:"
            " where there are any, write - to paste it on standard input, or use --link-file. An enrolled machine"
            " comes back without a link, or with the coordinator's HOST:PORT."
        ),
    ] = None,
    link_file: Annotated[
        Path | None, typer.Option(help="Read the join link from this file; - is standard input.")
    ] = None,
    links_from: Annotated[
        Path | None, typer.Option(help="Take the first free link in this folder, waiting for one to appear.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where this machine's identity is kept.")] = None,
    name: Annotated[str, typer.Option(help="What others see; by default two words that follow from its key.")] = "",
    team: Annotated[
        str | None,
        typer.Option(help="Credit this machine's work to a team, too; '' leaves it. Kept until another is given."),
    ] = None,
    device: Device = "auto",
    gpus: Gpus = "",
    beside: Annotated[
        Path | None, typer.Option(hidden=True, help="The home of the first worker of this machine.")
    ] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Hold at most this many expert columns.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Use at most this much memory, for example 8GB; without it, half of what is free. On a CPU: of the"
            " whole worker, Python and its libraries too (about 0.5 GB), but for blocks that are mapped, which the"
            " system takes back. On a GPU: of the GPU's, for the model and its training; beside it half of the"
            " machine's that is free. Columns and batches are planned to fit below it. On a GPU torch allocates no more"
            " than that; on a CPU it is not enforced beyond the plan."
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            help="Take at most this much disk for the run, for example 20GB: downloaded blocks, whole and partial, kept"
            " progress, and finished work that is not sent yet. Without it: what a lease needs, and up to 8 GiB of"
            " blocks that may serve again."
        ),
    ] = None,
    progress_writes: Annotated[
        str | None,
        typer.Option(
            help="Write at most so much of a lease's kept progress to the disk a day, for example 50GB: less wears the"
            " disk less, and more is done again after a crash. Without it: 200 GB."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to train with.")] = None,
    share: Annotated[
        str | None,
        typer.Option(
            help="Give the blocks that this machine has fetched to other workers of the run, no faster than this a"
            " second, for example 1MB. That opens a port here, and the other workers learn this machine's address; they"
            " get nothing but the run's own blocks. Without it, and without the rule peers.share, which holds for later"
            " starts and for the service, too: nothing is opened or given."
        ),
    ] = None,
    share_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            help="The port for --share, to be forwarded by a router; 0: any. Of several runs or GPUs the first has it.",
        ),
    ] = 0,
    archive: Annotated[
        bool,
        typer.Option(
            "--archive",
            help="Keep the newest version of the model whole on this disk, with its momentum and the run's recipe, so"
            " that `barnraise coordinator fork` can go on from it if the operator is gone. It takes up to two versions"
            " of disk, within --disk, and fetches what changed of every version.",
        ),
    ] = False,
    p2p: Annotated[
        bool,
        typer.Option(
            "--p2p",
            help="Take part in the run's peer-to-peer network, where it has one: one more way to find a run that moved"
            " to another address. It is a process of its own with some 350 MB of memory; those who take part learn"
            " this machine's address. It opens a port only together with --share.",
        ),
    ] = False,
    p2p_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port for --p2p together with --share; 0: any.")
    ] = 0,
    be_relay: Annotated[
        bool,
        typer.Option(
            "--be-relay",
            help="With --share and --p2p, and a --p2p-port that others reach: pass on what workers give to whom nobody"
            " can connect. Each byte of that comes in here and goes out again, within the rate of --share and your"
            " rules, which count it twice; at most 16 transfers at once of 256 MiB each. It is encrypted from end to"
            " end; who takes part learns this machine's address.",
        ),
    ] = False,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="While there is no lease, measure others' submissions, and versions, for the coordinator, if the run"
            " trusts this machine: that takes the whole model in fp32, and where it does not fit nothing is measured."
            " Without it: where there is a GPU.",
        ),
    ] = None,
    output: Annotated[str, typer.Option(help="auto, plain, json or quiet.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output json.")] = False,
) -> int:
    """Join a run and train until it is over. Ctrl-C, or closing the terminal, hands the work back and leaves.

    Without a link: as `barnraise worker run`.
    """
    from protocol.errors import ConfigError

    if sum(source is not None for source in (link, link_file, links_from)) > 1:
        raise ConfigError("give a join link, --link-file FILE or --links-from FOLDER, and only one of them")
    from barnraise.cli.links import claim_link, read_link
    from barnraise.cli.share_question import ask_to_share
    from protocol.allocator import keep_little
    from worker.again import become, go_on
    from worker.crew import devices_of, run_crew
    from worker.join import WorkerOptions, run_worker
    from worker.messages import EXIT_DEVICE_LOST
    from worker.options import check_device
    from worker.rejoin import home_root

    chosen_device = None if device == "auto" else device
    check_device(chosen_device)  # before a link is taken out of a folder
    devices = devices_of(gpus) if gpus else []
    if gpus and chosen_device is not None:
        raise ConfigError("give --gpus or --device, not both")
    memory_bytes = None if memory is None else parse_bytes(memory)
    disk_bytes = None if disk is None else parse_bytes(disk)
    options = WorkerOptions(
        home=home,
        first_home=beside,
        name=name,
        team=team,
        device=chosen_device,
        max_columns=columns,
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
        progress_bytes_a_day=None if progress_writes is None else parse_bytes(progress_writes),
        threads=threads,
        measures=measure,
        share_bytes_per_s=None if share is None else parse_bytes(share),
        share_port=share_port,
        archive=archive,
        p2p=p2p,
        p2p_port=p2p_port,
        be_relay=be_relay,
        output="json" if as_json else output,  # type: ignore[arg-type]  # WorkerOptions checks it
    )  # before a link is waited for
    if link == "-":
        link, link_file = None, Path("-")
    if link_file is not None:
        chosen = read_link(link_file)
    elif links_from is not None:
        chosen = claim_link(links_from, claimant=name or None)
    else:
        chosen = link or ""  # nothing: the run that this machine is enrolled in
    options = dataclasses.replace(options, link=chosen)
    if share is None and beside is None and options.output == "auto":
        ask_to_share(chosen, home_root(home))
    keep_little()
    if gpus:
        return run_crew(options, devices)
    started_s = time.monotonic()
    exit_code = run_worker(options)
    if exit_code != EXIT_DEVICE_LOST:
        return exit_code
    return go_on(options, time.monotonic() - started_s, become)


@app.command()
def run(
    home: Annotated[Path | None, typer.Option(help="Where this machine's identity is kept.")] = None,
    gpus: Gpus = "",
    output: Annotated[str, typer.Option(help="auto, plain, json or quiet.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output json.")] = False,
    view: Annotated[
        bool, typer.Option("--view", help="In the background, and watch it full-screen (`barnraise worker view`).")
    ] = False,
) -> int:
    """Work for every run that this machine is enrolled in, in turns by their shares, under your rules.

    The same as `barnraise worker join` without a link; `join --help` has its options. What it gives to other workers,
    and whether it keeps an archive, your rules say (`peers.share`, `peers.archive`: `barnraise worker rules`).
    """
    if view:
        screen.check_terminal()
        screen.run_behind(home, gpus)
        screen.view(home)
        return 0
    return join(home=home, gpus=gpus, output=output, as_json=as_json)


@app.command()
def appeal(
    lease: Annotated[str, typer.Argument(help="The refused lease; without it, the latest.")] = "",
    run: Annotated[str, typer.Option(help="The coordinator's HOST:PORT, where this machine is in several runs.")] = "",
    home: Annotated[Path | None, typer.Option(help="Where this machine's identity is kept.")] = None,
    as_json: Json = False,
) -> int:
    """Say that a refusal was wrong, once a day: your next submission is computed again, where the run does that."""
    import asyncio

    from worker.appeal import appeal as ask

    answer = asyncio.run(ask(lease, run=run, home=home))
    if as_json:
        print_json(dataclasses.asdict(answer))
    else:
        print(answer.reason)
    return 0 if answer.taken else 1


@app.command()
def probe(
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to measure with.")] = None,
    as_json: Json = False,
) -> None:
    """What this machine would offer to a run."""
    from worker.options import check_device

    chosen = None if device == "auto" else device
    check_device(chosen)  # before torch is imported, which takes seconds
    from worker.machine.probe import probe_machine

    machine = probe_machine(chosen, None, threads)
    if as_json:
        print_json(dataclasses.asdict(machine))
        return
    print_pairs(
        (
            ("device", f"{machine.device}: {machine.device_name}"),
            ("memory offered", human_bytes(machine.memory_bytes)),
            *([("second card", human_bytes(machine.second.memory_bytes))] if machine.second else []),
            ("threads", machine.threads),
            ("matrices in", "bf16" if machine.bf16 else "fp32"),
            ("experts' products", machine.experts),
        )
    )
    if machine.notice:
        print(f"\n{machine.notice}")
