"""The operator's commands: make a run, serve it, invite people, see why it waits, change a setting, end it.

Decides how settings are asked for; `coordinator/` does the rest. Orders to a running coordinator go over a
socket in the run folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barnraise.cli.options import Json, RunArgument, Settings, number, one_of
from barnraise.cli.output import ProgressLine, documents_told, print_json, say_note
from moe.presets import PRESETS
from protocol.codec_names import CODEC_NAMES
from protocol.recipe import TRUNKS
from protocol.residency import RESIDENCIES

if TYPE_CHECKING:
    from coordinator.settings import RunSettings

app = typer.Typer(no_args_is_help=True, help="Define a run, serve it, invite people.")


@app.command()
def init(
    folder: RunArgument,
    settings: Annotated[Path | None, typer.Option(help="A settings.toml to start from; options override it.")] = None,
    name: Annotated[str | None, typer.Option(help="What people see.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Train this shape from scratch: {one_of(PRESETS)}.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Train on from this Hugging Face folder, at a quarter of the usual rates.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A prepared dataset, a text file or folder, or stdlib.")] = None,
    screening_text: Annotated[
        Path | None,
        typer.Option(help="Text that was never published, a file or folder: submissions are measured on it as well."),
    ] = None,
    residency: Annotated[str | None, typer.Option(help=f"{one_of(RESIDENCIES)}.")] = None,
    column_parts: Annotated[
        int | None, typer.Option(help="Cut each expert's column into so many, by groups of layers.")
    ] = None,
    trunk: Annotated[
        str | None,
        typer.Option(help=f"What is trained of the trunk: {one_of(TRUNKS)}; the last two want a --checkpoint."),
    ] = None,
    codec: Annotated[str | None, typer.Option(help=f"What submissions are encoded in: {one_of(CODEC_NAMES)}.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens a sequence.")] = None,
    line: Annotated[
        str | None,
        typer.Option(
            metavar="UP/DOWN", help="Mbit/s that you expect of volunteers, 20/100 unless said: leases are made for it."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first weights.")] = None,
    rounds: Annotated[int | None, typer.Option(help="After so many rounds the run is over.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Workers that each column is leased to, a round.")] = None,
    quorum: Annotated[int | None, typer.Option(help="Accepted submissions that close a column.")] = None,
    inner_steps: Annotated[int | None, typer.Option(help="Inner steps a lease.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences an inner step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(parser=number(above=0), metavar="NUMBER", help="Of the inner optimizer.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Name or address by which workers reach this machine, with the port where a router forwards another "
            "one; IPv6 as 2001:db8::5 or [2001:db8::5]:PORT. May be repeated: four at most stand in join links.",
        ),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help="For people whom you do not know: what newcomers send weighs nothing until leases of theirs were "
            "computed again. The coordinator does so for one lease's work a round, which is slow where many come at "
            "once (--set audits.budget=8 is more). Without this, nothing is computed again unless you set that.",
        ),
    ] = False,
    founders: Annotated[
        int, typer.Option(min=0, max=1000, help="Make so many join links for people you trust, and print them.")
    ] = 0,
    accept_unaudited: Annotated[
        bool,
        typer.Option("--accept-unaudited", help="Begin an open run though nobody can tell a liar's work from another."),
    ] = False,
    accept_lossy: Annotated[
        bool, typer.Option("--accept-lossy", help="Begin with a codec that was measured to cost more than it saves.")
    ] = False,
    set_: Settings = None,
    asks: Annotated[
        bool, typer.Option("--ask/--no-ask", help="On a terminal, without --preset or --checkpoint: ask what it must.")
    ] = True,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing where a run is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Make a run: its keys, its data and the model's first version."""
    from barnraise.cli import questions
    from barnraise.cli.invites import founders_links
    from coordinator.run.folder import RunFolder, init_run
    from protocol.errors import ConfigError

    links: list[str] = []
    if if_missing and (folder / "run.json").is_file():
        run = RunFolder.open(folder)
    else:
        given = {
            "name": name,
            "preset": preset,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "data": data,
            "residency": residency,
            "column_parts": column_parts,
            "codec": codec,
            "sequence_length": sequence_length,
            "line": line,
            "seed": seed,
            "host": host,
            "port": port,
            "advertised_hosts": advertise or None,
        }
        if asks and not (settings or preset or checkpoint or as_json) and questions.can_ask():
            given = questions.answered(given)
        engine = {"max_rounds": rounds, "replicas": replicas, "quorum": quorum, "open_run": open_ or None}
        inner = {"inner_steps": inner_steps, "batch_sequences": batch, "learning_rate": learning_rate, "trunk": trunk}
        chosen = _settings(settings, given, {**engine, "inner": inner}, set_ or ())
        if founders and not chosen.port:
            raise ConfigError("founders' links name a port, and port 0 takes a free one at the first start: set --port")
        notes: list[str] = []
        with ProgressLine(quiet=as_json) as tell:
            private = None if screening_text is None else str(screening_text)
            run = init_run(
                folder,
                chosen,
                screening_text=private,
                founders=founders,
                accept_unaudited=accept_unaudited,
                accept_lossy=accept_lossy,
                note=notes.append,
                progress=documents_told(tell),
                told=tell,
            )
        for sentence in notes:
            say_note(sentence)
        links = founders_links(run, founders)
    if as_json:
        print_json({"run_id": run.run_id, "folder": str(run.root)} | ({"join_links": links} if founders else {}))
        return
    print(f"run {run.run_id} is in {run.root}; what was set, and what it means: {run.root / 'settings.toml'}")
    print(f"serve it:   barnraise coordinator run {folder}")
    print(f"invite:     barnraise coordinator invite {folder}")
    print(f"what it will take, first: barnraise coordinator plan {folder}")
    for link in links:
        print(f"a founder:  {link}")


def _settings(
    file: Path | None, given: dict[str, Any], engine: dict[str, Any], assignments: Iterable[str]
) -> RunSettings:
    """Settings from `--set`, then from the options that were given, then from the file, then defaults."""
    import tomllib

    from pydantic import ValidationError

    from coordinator.beginning import merged
    from coordinator.settings import RunSettings, describe, engine_overrides
    from protocol.errors import ConfigError

    try:
        table: dict[str, Any] = {} if file is None else tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read settings from {file}: {error}") from error
    options = _present({**engine, "inner": _present(engine["inner"]) or None})
    table |= _present(given)
    table["engine"] = merged(merged(table.get("engine", {}), options), engine_overrides(assignments))
    if "preset" not in table and "checkpoint" not in table:
        table["preset"] = "tiny"
    try:
        return RunSettings.model_validate(table)
    except ValidationError as error:
        raise ConfigError(describe(error)) from error


def _present(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def backup(
    folder: RunArgument,
    out: Annotated[Path, typer.Argument(help="New folder for the backup; as private as the run itself.")],
    as_json: Json = False,
) -> None:
    """Copy a run, while it is served or not, into a folder that `restore` makes a run of again."""
    from coordinator.run.backup import back_up
    from coordinator.run.folder import RunFolder

    facts = back_up(RunFolder.open(folder), out)
    if as_json:
        print_json({"backup": str(out), **dataclasses.asdict(facts)})
        return
    size = f"{facts.total_bytes / 2**20:.1f} MiB in {facts.files} files"
    print(f"run {facts.run_id} at version {facts.version} (event {facts.position}) is in {out}: {size}")


@app.command()
def restore(
    backup_folder: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `backup` wrote.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the run.")],
    as_json: Json = False,
) -> None:
    """Make a run folder from a backup. Serve it only where the original is served no more."""
    from coordinator.run.backup import restore as restore_backup

    facts = restore_backup(backup_folder, folder)
    if as_json:
        print_json({"folder": str(folder), **dataclasses.asdict(facts)})
        return
    print(f"run {facts.run_id} at version {facts.version} (event {facts.position}) is in {folder}")
    print(f"serve it:   barnraise coordinator run {folder}")


@app.command()
def verify(folder: RunArgument, as_json: Json = False) -> int:
    """Check journal, registry, keys, versions and submissions; exit code 1 where something is wrong."""
    from coordinator.run.folder import RunFolder
    from coordinator.run.verify import verify_run

    checks = verify_run(RunFolder.open(folder))
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        for check in checks:
            print(f"{check.name:<20} {'ok' if not check.problems else 'DAMAGED'}  ({check.checked} checked)")
            for problem in check.problems:
                print(f"  {problem}")
    return 1 if any(check.problems for check in checks) else 0


@app.command()
def run(
    folder: RunArgument,
    invites: Annotated[int, typer.Option(min=0, max=1000, help="Make so many join links at the start.")] = 0,
    invites_to: Annotated[
        Path | None, typer.Option(help="Write them as files into this folder instead of printing them.")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Founders: full weight from the start, and may audit others.")
    ] = False,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="HOST:PORT",
            help="Where the run's page and /metrics are, 127.0.0.1:7466 unless said; whoever reaches it may read it.",
        ),
    ] = None,
    http_name: Annotated[
        list[str] | None,
        typer.Option(
            "--http-name",
            metavar="NAME",
            help="A name, besides those advertised, that the page answers to. May be repeated.",
        ),
    ] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="No page and no /metrics.")] = False,
    traces: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send each round as an OpenTelemetry trace to this collector (OTLP, HTTP)."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For machines: what happens, one event a line, on standard output.")
    ] = False,
) -> int:
    """Serve the run until it is over, or until Ctrl-C; the next start goes on where this one was."""
    import asyncio

    from coordinator.page.address import PageAddress
    from coordinator.run.lock import folder_lock
    from protocol.errors import ConfigError

    if no_http and (http or http_name):
        raise ConfigError("--no-http leaves out the page that --http and --http-name are about: give one or the other")
    page = None if no_http else PageAddress.parse(http, http_name or ())
    lock = folder_lock(folder.resolve())
    if (folder / "run.json").is_file():
        lock.acquire()  # so that whoever asks meanwhile hears that it is starting: what follows takes seconds to load
    from barnraise.cli.serve import Serving, serve

    wanted = Serving(
        invites=invites, invites_to=invites_to, trusted=trusted, page=page, as_json=as_json, traces=traces, lock=lock
    )
    return asyncio.run(serve(folder, wanted))
